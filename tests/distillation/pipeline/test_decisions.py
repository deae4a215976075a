"""Teachers of any kind, from their decisions to a student that has learned them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from safetensors.numpy import load_file
from spacy.language import Language
from spacy.tokens import Doc, Span
from spacy.training import Example
from thinc.api import Config

import spacy_distil
from spacy_distil.distillation.pipeline import calls as calls_module
from spacy_distil.distillation.pipeline.calls import TeacherCalls, TeacherSettings
from spacy_distil.distillation.pipeline.corpus import Texts, read_transfer_set
from spacy_distil.errors import ConfigError, CorpusError, TeacherError
from tests.distillation.pipeline.deciders import Service, asked, deciders
from tests.distillation.pipeline.util import (
    PIPES,
    annotated_examples,
    build_pipeline,
    pipe_config,
    student_config,
    write_corpus,
)

ODD = [
    "",
    "   ",
    "\n\n",
    "Nothing here .",
    "😀 👩‍👩‍👧",
    "e\u0301te\u0301",
    "安 去 了 罗马",
    "a\x01b",
    "x " * 300,
]
SCORES = {
    "ner": "ents_f",
    "distil_ner": "ents_f",
    "tagger": "tag_acc",
    "morphologizer": "pos_acc",
    "senter": "sents_f",
    "trainable_lemmatizer": "lemma_acc",
    "parser": "dep_uas",
    "textcat": "cats_score",
    "textcat_multilabel": "cats_score",
    "spancat": "spans_sc_f",
}


def write_texts(path: Path, n: int = 60) -> list[str]:
    texts = [example.text for example in annotated_examples(spacy.blank("en"), n, start=200)]
    texts += ODD
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf8")
    return texts


def text_config(bert_dir: Path, directory: Path, *pipes: str, steps: int = 40) -> Config:
    """A student that has text alone."""
    write_texts(directory / "text.jsonl")
    config = student_config(bert_dir, directory, [p for p in pipes if p != "spancat"])
    if "spancat" in pipes:
        nlp = build_pipeline(bert_dir, [])
        listener = {"@architectures": "spacy-distil.Listener.v1"}
        spancat = nlp.get_factory_meta("spancat").default_config or {}
        model: Any = {**Config(spancat).copy()["model"], "tok2vec": listener}
        config["components"]["spancat"] = {"factory": "spancat", "model": model}
        config["nlp"]["pipeline"].append("spancat")
    for name in ("train", "dev"):
        config["corpora"][name]["path"] = None
    config["training"] |= {
        "max_steps": steps,
        "eval_frequency": steps,
        "score_weights": {SCORES[pipe]: 1.0 / len(pipes) for pipe in pipes},
    }
    rate = {"warmup_steps": 2, "total_steps": 3 * steps, "initial_rate": 5e-3}
    config["training"]["optimizer"]["learn_rate"] |= rate
    config["distillation"] = {"corpus": "corpora.text", "held_out": 8}
    return config


@pytest.mark.parametrize(
    ("pipe", "teacher", "settings"),
    [
        ("ner", "tests_zero_shot", {}),
        ("distil_ner", "tests_zero_shot", {}),
        ("distil_ner", "tests_spans", {"spans_key": "sc", "threshold": 0.5}),
        ("spancat", "tests_spans", {"threshold": 0.5}),
        ("tagger", "tests_tokens", {"teacher": "tests_tokens"}),
        ("morphologizer", "tests_tokens", {"teacher": "tests_tokens"}),
        ("senter", "tests_tokens", {"teacher": "tests_tokens"}),
        ("trainable_lemmatizer", "tests_tokens", {"teacher": "tests_tokens"}),
        ("parser", "tests_parse", {}),
        ("textcat", "tests_cats", {}),
        ("textcat_multilabel", "tests_cats", {}),
        ("textcat", "tests_cats", {"target": "silver"}),
    ],
)
def test_text_alone_teaches_what_a_component_decides(
    bert_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pipe: str,
    teacher: str,
    settings: dict[str, Any],
) -> None:
    config = text_config(bert_dir, tmp_path, pipe)
    config["distillation"]["pipes"] = {pipe: settings}
    nlp = deciders(teacher)
    distilled = spacy_distil.distil_pipeline(nlp, config, tmp_path / "out")
    output = " ".join(capsys.readouterr().out.split())
    assert "Scores are agreement with the teacher, on 8 documents that are held out" in output
    assert distilled.score > 0.8, output
    student = spacy.load(distilled.path)
    assert "Nothing" not in student.vocab.strings
    docs = list(student.pipe(ODD))
    assert [doc.text for doc in docs] == ODD


def test_what_is_missing_is_named(
    bert_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A component that declares nothing, and held-out documents in which nothing is found."""
    config = text_config(bert_dir, tmp_path, "tagger", steps=4)
    nlp = deciders("tests_tokens")
    with pytest.raises(ConfigError, match=r"name it: teacher in \[distillation\.pipes\.tagger\]"):
        spacy_distil.distil_pipeline(nlp, config, tmp_path / "out")
    texts = [{"text": f"Ann saw Oslo {i} ." if i else "Nothing here ."} for i in range(12)]
    config = text_config(bert_dir, tmp_path, "ner", steps=4)
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, texts)))
    config["distillation"]["held_out"] = 50
    with pytest.raises(CorpusError, match=r"give distillation\.held_out a smaller number"):
        spacy_distil.distil_pipeline(deciders("tests_zero_shot"), config, tmp_path / "out")
    output = " ".join(capsys.readouterr().out.split())
    assert "So few documents tell little about a student" in output


# Slow or paid teachers


@pytest.fixture(autouse=True)
def calls(tmp_path: Path) -> None:
    Service.calls = tmp_path / "calls.txt"
    Service.calls.touch()


def numbered(bert_dir: Path, directory: Path, n: int = 24) -> Config:
    """A student of a service, for texts that are all different."""
    config = text_config(bert_dir, directory, "ner", steps=6)
    texts = [{"text": f"Ann saw Oslo {i} times ."} for i in range(n)]
    (directory / "text.jsonl").write_text("\n".join(map(json.dumps, texts)))
    config["distillation"]["teacher"] = {"shard_tokens": 30}
    return config


def weights(path: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(path)): each.read_bytes()
        for each in path.rglob("*")
        if each.is_file() and each.name in ("model", "model.safetensors", "strings.json")
    }


def test_an_interrupted_run_asks_about_no_document_twice(
    bert_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = numbered(bert_dir, tmp_path)
    teacher = deciders("tests_service", tests_service={"fail": "Oslo 17 times"})
    service: Any = teacher.get_pipe("tests_service")
    with pytest.raises(TeacherError, match=r"'tests_service' failed on document \d+ \('Ann saw Os"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    first = asked()
    recorded = len(list((tmp_path / "out/cache/decisions").glob("shard-*"))) * 5  # of 6 tokens
    assert 5 <= recorded < len(first)
    service.times = 0  # it is well again
    spacy_distil.distil_pipeline(teacher, config, tmp_path / "out", resume=True)
    assert not set(first[:recorded]) & set(asked()[len(first) :])
    n_asked = len(asked())
    assert set(asked()) == {f"Ann saw Oslo {i} times ." for i in range(24)}
    whole = spacy_distil.distil_pipeline(teacher, config, tmp_path / "whole")
    assert len(asked()) == n_asked + 24
    assert {"ner/model", "transformer/model.safetensors"} <= weights(whole.path).keys()
    assert weights(tmp_path / "out" / "model-last") == weights(whole.path.parent / "model-last")
    # Other steps, and a finished run, ask nothing.
    config["training"]["max_steps"] = 4
    config["distillation"]["cache"] = str(tmp_path / "whole" / "cache")
    spacy_distil.distil_pipeline(teacher, config, tmp_path / "more")
    spacy_distil.distil_pipeline(teacher, config, tmp_path / "more", resume=True)
    assert len(asked()) == n_asked + 24
    assert "Finished already" in capsys.readouterr().out


def test_errors_are_retried_with_growing_waits(
    bert_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(calls_module.time, "sleep", waits.append)
    busy = {"fail": "Oslo 3 times", "times": 8}
    teacher = deciders("tests_service", tests_service=busy)
    docs = [teacher.make_doc(f"Ann saw Oslo {i} times .") for i in range(5)]
    settings = TeacherSettings(retries=7)
    found = TeacherCalls(settings).annotate("s", teacher.get_pipe("tests_service"), docs, range(5))
    assert waits == [1, 2, 4, 8, 16, 32, 60]
    assert [len(doc.ents) for doc in found] == [2] * 5
    output = " ".join(capsys.readouterr().out.split())
    assert "failed on document 3 ('Ann saw Oslo 3 times ." in output
    assert "OSError: the service is busy. Retry 7 of 7 in 60 seconds" in output
    waits.clear()
    teacher.get_pipe("tests_service").times = -1  # type: ignore[attr-defined]
    with pytest.raises(TeacherError, match="after 2 retries: OSError: the service is busy"):
        TeacherCalls(TeacherSettings(retries=2)).annotate(
            "s", teacher.get_pipe("tests_service"), docs, range(5)
        )
    assert waits == [1, 2]


def test_documents_come_as_slowly_as_the_limit_says(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(calls_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(calls_module.time, "sleep", lambda wait: now.__setitem__(0, now[0] + wait))
    limited = TeacherCalls(TeacherSettings(rate_limit=30))
    batches = []
    for batch in limited.batches(range(4, 9)):
        batches.append((batch, now[0]))
        now[0] += 0.5  # the work
    assert batches == [(range(i, i + 1), 100.0 + 2 * (i - 4)) for i in range(4, 9)]
    assert next(limited.batches(range(9, 10))) == range(9, 10)
    assert now[0] == 110.0
    pairs = TeacherCalls(TeacherSettings(rate_limit=30, batch_size=2))
    assert list(pairs.batches(range(5))) == [range(2), range(2, 4), range(4, 5)]
    assert now[0] == 110.0 + 8
    assert list(TeacherCalls(TeacherSettings()).batches(range(5))) == [range(5)]
    assert list(TeacherCalls(TeacherSettings()).batches(range(0))) == []


def test_components_that_change_tokens_or_lose_documents_are_refused() -> None:
    teacher = spacy.blank("en")
    teacher.add_pipe("tests_zero_shot")
    merger = teacher.add_pipe("merge_entities")
    docs = [teacher.get_pipe("tests_zero_shot")(Doc(teacher.vocab, words=["Ann", "left"]))]
    docs[0].set_ents([Span(docs[0], 0, 2, "PER")])
    run = TeacherCalls(TeacherSettings()).annotate
    with pytest.raises(TeacherError, match="'merge_entities' changes the tokens of 'Ann left"):
        run("merge_entities", merger, docs, range(1))

    class Loses:
        def pipe(self, docs: Any, batch_size: int) -> Any:
            return iter(list(docs)[:1])

    two = [Doc(teacher.vocab, words=[word]) for word in ("a", "b")]
    with pytest.raises(TeacherError, match="returned 1 documents for 2"):
        run("loses", Loses(), two, range(2))
    with pytest.raises(TeacherError, match="'forgets' returned None for 'a ': expected the doc"):
        run("forgets", lambda doc: None, two, range(2))


def test_user_data_need_not_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A component before this one may leave anything on a document, such as a lock."""
    nlp = spacy.blank("en")
    doc = nlp.make_doc("Ann left")
    lock = threading.Lock()
    doc.user_data["lock"] = lock
    monkeypatch.setattr(calls_module.time, "sleep", lambda seconds: None)
    fails = [True]

    def busy(doc: Doc) -> Doc:
        doc.user_data["mine"] = 1
        if fails:
            raise OSError(fails.pop())
        return doc

    (again,) = TeacherCalls(TeacherSettings(retries=1)).annotate("busy", busy, [doc], range(1))
    assert again.user_data == {"lock": lock, "mine": 1}


# Labels


def test_a_cache_of_another_label_set_is_refused(bert_dir: Path, tmp_path: Path) -> None:
    config = numbered(bert_dir, tmp_path)
    config["distillation"]["cache"] = str(tmp_path / "cache")
    teacher = deciders("tests_service")
    spacy_distil.distil_pipeline(teacher, config, tmp_path / "both")
    n_asked = len(asked())
    config["components"]["ner"] = {**pipe_config("distil_ner"), "factory": "distil_ner"}
    config["initialize"]["components"]["ner"] = {"labels": ["PER"]}
    with pytest.raises(ConfigError, match=r"Changed since it was made: what is recorded"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "one")
    spacy_distil.distil_pipeline(teacher, config, tmp_path / "one", force=True)
    assert len(asked()) == n_asked  # the decisions themselves are the same


def test_labels_that_the_student_lacks_are_counted(
    bert_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = text_config(bert_dir, tmp_path, "distil_ner", steps=2)
    config["initialize"]["components"]["distil_ner"] = {"labels": ["PER"]}
    teacher = deciders("tests_zero_shot")
    distilled = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    student = spacy.load(distilled.path)
    assert student.get_pipe("distil_ner").labels == ("PER",)
    texts = _learned_texts(config, student)
    entities = [ent.label_ for text in texts for ent in teacher(text).ents]
    n_places = entities.count("LOC")
    output = " ".join(capsys.readouterr().out.split())
    message = f"distil_ner does not learn {n_places} of {len(entities)} decisions of the teacher"
    assert f"{message}: it lacks the labels LOC" in output


def _learned_texts(config: Config, student: Language) -> list[str]:
    reader = Texts(config["corpora"]["text"]["path"])
    return [doc.text for doc in read_transfer_set(student, None, reader, held_out=8).docs]


def test_labels_that_the_component_declares_are_taken(bert_dir: Path, tmp_path: Path) -> None:
    config = text_config(bert_dir, tmp_path, "distil_ner", steps=2)
    teacher = spacy.blank("en")
    ruler: Any = teacher.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": each, "pattern": "Ann"} for each in ("PER", "NEVER")])
    distilled = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    labels = json.loads((tmp_path / "out" / "labels" / "distil_ner.json").read_text())
    assert set(labels) == {"PER", "NEVER"}
    student: Any = spacy.load(distilled.path)
    assert set(student.get_pipe("distil_ner").labels) == {"PER", "NEVER"}


def test_a_teacher_that_decides_nothing_is_an_error(bert_dir: Path, tmp_path: Path) -> None:
    config = text_config(bert_dir, tmp_path, "ner", steps=2)
    config["distillation"]["pipes"] = {"ner": {"teacher": "tests_spans", "spans_key": "entities"}}
    message = r"'tests_spans' has set nothing .* \(its span groups: 'sc'\).* spans_key in \["
    with pytest.raises(ConfigError, match=message):
        spacy_distil.distil_pipeline(deciders("tests_spans"), config, tmp_path / "out")


# Beside models


def test_a_component_among_models_is_asked_once_and_the_models_are_recorded_as_ever(
    bert_dir: Path, tmp_path: Path, teacher: Language
) -> None:
    """The tagger stands behind it, and reads the encoder's vectors from the docs."""
    both = spacy.blank("en")
    for name in ("transformer", "tagger"):
        both.add_pipe(name, source=teacher)
    both.add_pipe("tests_service", after="transformer")
    # No pipe learns from this one, but it stands before one that teaches.
    both.add_pipe("tests_counts", after="transformer")
    write_corpus(tmp_path, teacher)
    config = student_config(bert_dir, tmp_path, ["tagger", "ner"])
    config["training"]["max_steps"] = 6
    spacy_distil.distil_pipeline(both, config, tmp_path / "both")
    assert len(asked()) == 2 * (12 + 10)
    tagger_config = student_config(bert_dir, tmp_path, ["tagger"])
    tagger_config["training"]["score_weights"] = {"tag_acc": 1.0}
    tagger_config["training"]["max_steps"] = 6
    both.remove_pipe("tests_service")
    both.remove_pipe("tests_counts")
    spacy_distil.distil_pipeline(both, tagger_config, tmp_path / "tagger")
    shards = [
        load_file(tmp_path / run / "cache" / "shard-00000.safetensors")
        for run in ("both", "tagger")
    ]
    for key in ("tagger/labels", "tagger/log_probs", "[hidden]/last", *shards[1]):
        if key in shards[1]:
            np.testing.assert_array_equal(shards[0][key], shards[1][key])
    assert shards[1].keys() < shards[0].keys()


# Text alone


def test_held_out_documents_are_not_learned(bert_dir: Path, tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    docs = [nlp.make_doc(f"Text {i % 90}") for i in range(120)]
    examples = [Example(doc, doc.copy()) for doc in docs]
    found = read_transfer_set(nlp, None, lambda nlp: examples, held_out=50)
    assert [doc.text for doc in found.held_out] == ["Text 0", "Text 60"]
    assert len(found.all) == 120 - 2 - 1  # and the copy of the first one
    assert not {doc.text for doc in found.docs} & {"Text 0", "Text 60"}
    assert [each.number for each in found.all] == list(range(117))
    many = [Example(doc, doc) for doc in (nlp.make_doc(str(i)) for i in range(5000))]
    assert len(read_transfer_set(nlp, None, lambda nlp: many, held_out=2).held_out) == 1000
    with pytest.raises(CorpusError, match="has no second document"):
        read_transfer_set(nlp, None, lambda nlp: examples[:1], held_out=50)


def test_known_kinds_teach_from_text_alone(
    bert_dir: Path, tmp_path: Path, teacher: Language, capsys: pytest.CaptureFixture[str]
) -> None:
    """From soft targets, with the labels of the teacher and its first layers."""
    config = text_config(bert_dir, tmp_path, *PIPES, steps=30)
    config["distillation"]["student"] = {"n_layers": 2}
    distilled = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    output = " ".join(capsys.readouterr().out.split())
    assert "0 documents with annotation, and 45 without" in output
    assert "Scores are agreement with the teacher" in output
    assert distilled.score > 0.9
    student = spacy.load(distilled.path)
    assert student.get_pipe("tagger").labels == teacher.get_pipe("tagger").labels
    assert student("Ann visited Rome.")[1].lemma_ == teacher("Ann visited Rome.")[1].lemma_


def test_what_needs_annotation_is_refused_without_it(
    bert_dir: Path, tmp_path: Path, teacher: Language
) -> None:
    config = text_config(bert_dir, tmp_path, "tagger", steps=4)
    stages = {"distillation.stages.gold": {"share": 0.5}}
    with pytest.raises(ConfigError, match=r"stages\.gold\] learns from annotation alone, but"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out", overrides=stages)
    with pytest.raises(ConfigError, match="so they have nothing to learn"):
        spacy_distil.distil_pipeline(deciders("tests_spans"), config, tmp_path / "out")
    config["distillation"]["corpus"] = None
    with pytest.raises(ConfigError, match="There is no path to the training corpus and the dev"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
