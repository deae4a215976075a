"""Silver data in files: what `spacy train` reads of what a pipeline has annotated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Corpus
from typer.testing import CliRunner

from spacy_distil.cli import distil_cli
from spacy_distil.distillation.pipeline.silver_data import annotate_texts
from spacy_distil.errors import ConfigError, CorpusError, TeacherError
from spacy_distil.hugging_face import load_classifier
from tests.distillation.pipeline import deciders as stand_ins
from tests.distillation.pipeline.deciders import Service, asked, deciders
from tests.distillation.pipeline.test_decisions import ODD, write_texts
from tests.hugging_face.models import write_model
from tests.util import write_encoder

ALL = ("tests_zero_shot", "tests_spans", "tests_tokens", "tests_cats")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    write_texts(tmp_path / "texts.jsonl", 14)
    return tmp_path / "texts.jsonl"


@pytest.fixture(autouse=True)
def calls(tmp_path: Path) -> None:
    Service.calls = tmp_path / "calls.txt"
    Service.calls.touch()


def read(path: Path) -> list[Doc]:
    """The documents, as `spacy train` reads them."""
    nlp = spacy.blank("en")
    return [example.reference for example in Corpus(path, shuffle=False)(nlp)]


def annotation(doc: Doc) -> Any:
    """Everything on a doc that a pipe could learn, in spaCy's own words."""
    return (
        [(t.text, t.whitespace_, t.tag_, t.pos_, str(t.morph), t.lemma_, t.dep_) for t in doc],
        [(t.head.i, t.is_sent_start, t.ent_iob_, t.ent_type_) for t in doc],
        {key: [(s.start, s.end, s.label_) for s in group] for key, group in doc.spans.items()},
    )


def expected(nlp: Language, path: Path) -> list[Any]:
    given = [json.loads(line)["text"] for line in path.read_text(encoding="utf8").splitlines()]
    return [annotation(nlp(text)) for text in given if text.strip()]


def test_the_file_has_the_pipelines_annotation(texts: Path, tmp_path: Path) -> None:
    nlp = deciders(*ALL)
    silver = annotate_texts(nlp, [texts], tmp_path / "silver.spacy", exclusive_cats=True)
    docs = read(tmp_path / "silver.spacy")
    given = list(map(nlp, _given(texts)))
    for doc in given:
        doc.ents = doc.ents  # a component that declares entities has found none
    assert list(map(annotation, docs)) == list(map(annotation, given))
    assert (
        len(docs)
        == silver.documents
        == silver.annotated
        == 14 + sum(map(bool, map(str.strip, ODD)))
    )
    assert silver.words == sum(map(len, docs))
    for doc in docs:
        has_person = any(token.text in stand_ins.PEOPLE for token in doc)
        assert doc.cats == {"travel": float(has_person), "food": float(not has_person)}
        assert not doc.user_data
    assert {path.name for path in tmp_path.glob("silver*")} == {"silver.spacy"}


def test_a_parsers_annotation_survives(texts: Path, tmp_path: Path) -> None:
    nlp = deciders("tests_parse")
    annotate_texts(nlp, [texts], tmp_path / "silver.spacy")
    docs = read(tmp_path / "silver.spacy")
    assert [annotation(doc) for doc in docs] == expected(nlp, texts)
    assert all(doc.has_annotation("DEP") for doc in docs)


def test_a_directory_of_parts_and_long_documents(texts: Path, tmp_path: Path) -> None:
    nlp = deciders(*ALL)
    silver = annotate_texts(nlp, [texts, texts], tmp_path / "out", shard_docs=7, max_words=50)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names[0] == "silver-00000.spacy"
    assert names[-1] == "silver.json"
    assert len(names) == -(-silver.documents // 7) + 1
    docs = read(tmp_path / "out")
    assert max(map(len, docs)) == 50
    assert sum(doc.text.count("x") for doc in docs if len(doc) == 50) == 2 * 300
    whole = annotate_texts(nlp, [texts], tmp_path / "limited.spacy", limit=3)
    assert whole.documents == 3


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    """It asks about no document twice, but for the part that the kill has cut."""
    texts = tmp_path / "numbered.txt"
    texts.write_text("".join(f"Ann saw Oslo {i} times.\n" for i in range(20)))
    pipeline = tmp_path / "pipeline"
    deciders("tests_service").to_disk(pipeline)
    code = tmp_path / "code.py"
    source = "import time\nfrom pathlib import Path\n"
    source += "from tests.distillation.pipeline import deciders\n"
    source += f"deciders.Service.calls = Path({str(Service.calls)!r})\n"
    source += "call = deciders.Service.__call__\n"
    source += "def slow(self, doc):\n    time.sleep(0.05)\n    return call(self, doc)\n"
    source += "deciders.Service.__call__ = slow\n"
    code.write_text(source)
    words = [*("distil", "annotate"), str(pipeline), str(texts)]
    words += ["--output", str(tmp_path / "out"), "--shard-docs", "4", "--code", str(code)]
    command = [sys.executable, "-m", "spacy", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    second = tmp_path / "out" / "silver-00001.spacy"
    while process.poll() is None and not second.exists():
        time.sleep(0.01)
    assert process.poll() is None, "it was over before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    nlp = deciders("tests_service")
    assert 20 <= len(asked()) <= 20 + 2 * 4
    assert all(asked().count(text) == 1 for text in asked()[:4])
    annotate_texts(nlp, [texts], tmp_path / "whole", shard_docs=4)
    for path in sorted((tmp_path / "whole").glob("*.spacy")):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    before = len(asked())
    again = annotate_texts(nlp, [texts], tmp_path / "whole", shard_docs=4)
    assert (again.annotated, len(asked())) == (0, before)


def test_an_error_of_the_pipeline_names_the_document_and_keeps_the_rest(
    texts: Path, tmp_path: Path
) -> None:
    failing = deciders("tests_service", tests_service={"fail": "Nothing"})
    with pytest.raises(TeacherError, match=r"'tests_service' failed on document 14 \('Nothing her"):
        annotate_texts(failing, [texts], tmp_path / "out", shard_docs=5, batch_size=3)
    n_asked = len(asked())
    well = deciders("tests_service", tests_service={"fail": "Nothing", "times": 0})
    with pytest.raises(ConfigError, match="of another pipeline or other settings"):
        annotate_texts(well, [texts], tmp_path / "out", shard_docs=5)
    failing.get_pipe("tests_service").times = 0  # type: ignore[attr-defined]
    silver = annotate_texts(failing, [texts], tmp_path / "out", shard_docs=5, batch_size=3)
    assert silver.annotated == silver.documents - 10
    assert len(asked()) == n_asked + silver.annotated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_docs": -1}, "shard_docs = -1"),
        ({"min_confidence": 1.5}, r"min_confidence = 1\.5"),
        ({"rate_limit": 0.0}, r"annotate\.rate_limit = 0\.0"),
        ({"lang": "en"}, "lang = 'en': the pipeline has a language of its own"),
    ],
)
def test_settings_that_cannot_work(
    texts: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        annotate_texts(deciders("tests_zero_shot"), [texts], tmp_path / "a.spacy", **options)
    assert not (tmp_path / "a.spacy").exists()


def test_outputs_and_texts_that_are_refused(texts: Path, tmp_path: Path) -> None:
    nlp = deciders("tests_zero_shot")
    with pytest.raises(ConfigError, match=r"is not the name of a \.spacy file"):
        annotate_texts(nlp, [texts], tmp_path / "silver")
    (tmp_path / "old.spacy").write_text("precious")
    with pytest.raises(ConfigError, match="exists"):
        annotate_texts(nlp, [texts], tmp_path / "old.spacy")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    for force in (False, True):
        with pytest.raises(ConfigError, match="no silver data"):
            annotate_texts(nlp, [texts], tmp_path / "full", shard_docs=3, force=force)
    with pytest.raises(ConfigError, match=r"no component that annotates .* components: none\)"):
        annotate_texts(spacy.blank("en"), [texts], tmp_path / "a.spacy")
    encoder = write_encoder(tmp_path / "encoder", "bert")
    with pytest.raises(ConfigError, match=r"no component that annotates .* 'transformer'"):
        annotate_texts(encoder, [texts], tmp_path / "a.spacy", lang="en")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(CorpusError, match="no document with text"):
        annotate_texts(nlp, [empty], tmp_path / "a.spacy")
    annotate_texts(nlp, [texts], tmp_path / "out", shard_docs=3)
    with pytest.raises(ConfigError, match="more documents than are given"):
        annotate_texts(nlp, [texts], tmp_path / "out", shard_docs=3, limit=6)
    other = tmp_path / "other.txt"
    other.write_text("Ann left.\nBob came.\nOslo.\n")
    with pytest.raises(ConfigError, match="of other texts"):
        annotate_texts(nlp, [other], tmp_path / "out", shard_docs=3)
    annotate_texts(nlp, [other], tmp_path / "out", shard_docs=3, force=True)
    assert [doc.text for doc in read(tmp_path / "out")] == ["Ann left.", "Bob came.", "Oslo."]
    assert len(list((tmp_path / "out").glob("*.spacy"))) == 1


def test_a_damaged_part_is_made_again(texts: Path, tmp_path: Path) -> None:
    nlp = deciders("tests_zero_shot")
    annotate_texts(nlp, [texts], tmp_path / "out", shard_docs=6)
    part = tmp_path / "out" / "silver-00001.spacy"
    whole = part.read_bytes()
    part.write_bytes(whole[:-10])
    assert annotate_texts(nlp, [texts], tmp_path / "out", shard_docs=6).annotated == 6
    assert part.read_bytes() == whole


def test_confidence_of_cats_and_spans(texts: Path, tmp_path: Path) -> None:
    nlp = deciders("tests_cats", tests_cats={"rest": False})  # 0.8, or 0.1 without people
    sure = annotate_texts(nlp, [texts], tmp_path / "a.spacy", min_confidence=0.85)
    assert sure.left_out > 3
    docs = read(tmp_path / "a.spacy")
    assert len(docs) == sure.documents > 3
    assert not {token.text for doc in docs for token in doc} & stand_ins.PEOPLE
    spans = deciders(
        "tests_spans"
    )  # a span of 0.3 wherever there is an entity before another token
    sure = annotate_texts(spans, [texts], tmp_path / "b.spacy", min_confidence=0.5)
    docs = read(tmp_path / "b.spacy")
    assert len(docs) == sure.documents > 3
    assert all(len(doc.spans["sc"]) == 0 or doc.spans["sc"][-1].end == len(doc) for doc in docs)
    wild = deciders("tests_cats", tests_cats={"scale": 20.0})
    with pytest.raises(ConfigError, match=r"doc\.cats\['travel'\] = .* --exclusive-cats"):
        annotate_texts(wild, [texts], tmp_path / "c.spacy")
    annotate_texts(wild, [texts], tmp_path / "c.spacy", exclusive_cats=True)
    assert {sum(doc.cats.values()) for doc in read(tmp_path / "c.spacy")} == {1.0}


def test_documents_without_scores_stay(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some documents have no span, so that a whole part may be without scores."""
    spans = deciders("tests_spans")
    whole = annotate_texts(spans, [texts], tmp_path / "whole.spacy", min_confidence=0.5)
    parts = annotate_texts(spans, [texts], tmp_path / "out", shard_docs=1, min_confidence=0.5)
    assert (parts.documents, parts.left_out) == (whole.documents, whole.left_out)
    assert "leaves out nothing" not in capsys.readouterr().out
    rules = deciders("tests_zero_shot")
    silver = annotate_texts(rules, [texts], tmp_path / "out2", shard_docs=5, min_confidence=0.5)
    assert silver.left_out == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "min_confidence = 0.5 leaves out nothing: no component leaves scores" in output


def test_confidence_of_categories_that_exclude_each_other(texts: Path, tmp_path: Path) -> None:
    """It is the highest, 0.8 or 0.9 here: half of that at this scale."""
    half = deciders("tests_cats", tests_cats={"scale": 0.5})
    out = tmp_path / "a.spacy"
    silver = annotate_texts(half, [texts], out, exclusive_cats=True, min_confidence=0.42)
    docs = read(out)
    assert silver.left_out > 3
    assert len(docs) > 3
    assert not {token.text for doc in docs for token in doc} & stand_ins.PEOPLE
    wild = deciders("tests_cats", tests_cats={"scale": 20.0})
    with pytest.raises(ConfigError, match=r"= 2 on the document .* Leave min_confidence out"):
        annotate_texts(wild, [texts], tmp_path / "b.spacy", exclusive_cats=True, min_confidence=0.5)


def test_no_entities_are_not_unknown_entities(texts: Path, tmp_path: Path) -> None:
    """The component declares entities, and leaves documents without any as they are."""
    annotate_texts(deciders("tests_zero_shot"), [texts], tmp_path / "silver.spacy")
    docs = read(tmp_path / "silver.spacy")
    assert sum(not doc.ents for doc in docs) > 3
    assert all(token.ent_iob_ in "BIO" and token.ent_iob_ for doc in docs for token in doc)
    annotate_texts(deciders("tests_cats"), [texts], tmp_path / "cats.spacy")
    assert not any(doc.has_annotation("ENT_IOB") for doc in read(tmp_path / "cats.spacy"))


def test_outputs_among_the_texts_are_refused(texts: Path, tmp_path: Path) -> None:
    """The next call would annotate its own output, or lose the annotation that it replaces."""
    nlp = deciders("tests_zero_shot")
    gold = tmp_path / "gold.spacy"
    annotate_texts(nlp, [texts], gold)
    before = gold.read_bytes()
    (tmp_path / "link.spacy").symlink_to(gold)
    for paths, output, options in [
        ([gold], gold, {"force": True}),
        ([tmp_path / "link.spacy"], gold, {"force": True}),
        ([tmp_path], tmp_path / "silver.spacy", {}),
        ([tmp_path], tmp_path, {"shard_docs": 3}),
        ([gold], tmp_path, {"shard_docs": 3}),
    ]:
        with pytest.raises(ConfigError, match="is among the texts"):
            annotate_texts(nlp, paths, output, **options)
    assert gold.read_bytes() == before
    annotate_texts(nlp, [tmp_path], tmp_path / "silver", shard_docs=50)
    annotate_texts(nlp, [tmp_path], tmp_path / "elsewhere" / "silver.spacy")


def test_confidence_of_softmax_is_that_of_the_model(
    teacher: Language, texts: Path, tmp_path: Path
) -> None:
    docs = list(map(teacher, _given(texts)))
    probabilities = []
    for doc in docs:
        lowest = []
        for name in ("tagger", "morphologizer", "senter", "trainable_lemmatizer"):
            logits = np.asarray(teacher.get_pipe(name).model.predict([doc])[0], dtype="d")  # type: ignore[attr-defined]
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            if teacher.get_pipe(name).model.layers[-1].attrs.get("softmax_normalize"):  # type: ignore[attr-defined]
                weights = logits
            lowest.append((weights / weights.sum(axis=1, keepdims=True)).max(axis=1).min())
        probabilities.append(min([*lowest, max(doc.cats.values())]))
    middle = float(np.median(probabilities))
    silver = annotate_texts(teacher, [texts], tmp_path / "a.spacy", min_confidence=middle)
    kept = [doc.text for doc in read(tmp_path / "a.spacy")]
    assert kept == [d.text for d, p in zip(docs, probabilities, strict=True) if p >= middle - 1e-6]
    assert 0 < silver.left_out < len(docs)


def _given(path: Path) -> list[str]:
    given = [json.loads(line)["text"] for line in path.read_text(encoding="utf8").splitlines()]
    return [text for text in given if text.strip()]


def test_a_model_of_transformers(texts: Path, tmp_path: Path) -> None:
    labels = ["O", "B-PER", "I-PER"]
    model = str(write_model(tmp_path / "bert", "bert", "TokenClassification", labels))
    words = ["annotate", model, str(texts), "--output", str(tmp_path / "out"), "--shard-docs", "4"]
    result = CliRunner().invoke(distil_cli, words)
    assert result.exit_code == 1
    assert "Name the language with --lang" in " ".join(result.output.split())
    result = CliRunner().invoke(distil_cli, [*words, "--lang", "en"])
    assert result.exit_code == 0, result.output
    nlp = load_classifier(model, "en")
    docs = read(tmp_path / "out")
    assert [annotation(doc) for doc in docs] == expected(nlp, texts)
    assert sum(len(doc.ents) for doc in docs) > 3
    # Another process knows that they are done.
    again = annotate_texts(model, [texts], tmp_path / "out", shard_docs=4, lang="en")
    assert (again.annotated, again.documents) == (0, len(docs))


def test_the_command(texts: Path, tmp_path: Path) -> None:
    deciders("tests_zero_shot").to_disk(tmp_path / "pipeline")
    words = ["annotate", str(tmp_path / "pipeline"), str(texts), "--output"]
    result = CliRunner().invoke(distil_cli, [*words, str(tmp_path / "silver.spacy")])
    assert result.exit_code == 0, result.output
    assert "Saved 20 documents" in result.output
    result = CliRunner().invoke(distil_cli, [*words, str(tmp_path / "silver.txt")])
    assert result.exit_code == 1
    assert "is not the name of a .spacy file" in " ".join(result.output.split())
