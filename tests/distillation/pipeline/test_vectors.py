"""Vectors of docs against transformers, torch's autograd, finite differences and brute force."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
import transformers
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from tokenizers import Tokenizer

import spacy_distil
from spacy_distil.distillation.pipeline.corpus import (
    Texts,
    fingerprint_annotation,
    read_transfer_set,
)
from spacy_distil.distillation.pipeline.distiller import make_vectors
from spacy_distil.distillation.pipeline.fingerprints import fingerprint_docs
from spacy_distil.distillation.pipeline.heads.base import Field
from spacy_distil.distillation.pipeline.hidden import HiddenStates, update_encoder
from spacy_distil.distillation.pipeline.recorder import VECTORS, TeacherRecorder
from spacy_distil.distillation.pipeline.vectors import DocVectors, score_vectors
from spacy_distil.errors import ConfigError
from tests.distillation.pipeline.util import annotated_examples, student_config
from tests.util import (
    SENTENCES,
    WIDTH,
    make_nlp,
    registry,
    same,
    torch_model_of,
    weights_of,
    write_encoder,
)

LONG = 5  # of several windows
# Pairs of a text and its original, None for a text that is its own.
PAIRS: list[tuple[str, str | None]] = [
    ("Ann besucht Rom.", SENTENCES[0]),
    (SENTENCES[1], None),
    ("", None),
    ("東京 と 北京", "Tokyo  and\nBeijing 👩🏽‍🚀"),
    ("  ", None),
    ("Wir mögen Pizza." * 40, "We like pizza.\u0000 " * 40),
    ("Ann besucht Rom.", "e\u0301 \u200b"),
]


@pytest.fixture(scope="module")
def other_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RoBERTa of the student's width, with other pieces."""
    path = tmp_path_factory.mktemp("teacher") / "roberta"
    return write_encoder(path, "roberta", positions=600, layers=1, seed=7)


def component(nlp: Any) -> Any:
    return nlp.get_pipe("transformer")


def examples_of(nlp: Any, texts: Sequence[str]) -> list[Example]:
    return [Example(nlp.make_doc(text), nlp.make_doc(text)) for text in texts]


def naive_means(directory: Path, model: Any, docs: Sequence[Doc]) -> torch.Tensor:
    """The mean of the token vectors of each doc, (n_docs, width): token by token, piece by piece,
    each doc in one window.
    """
    raw = Tokenizer.from_file(str(directory / "tokenizer.json"))
    means = []
    for doc in docs:
        encoding = raw.encode(doc.text)
        states = model(input_ids=torch.tensor([encoding.ids])).last_hidden_state[0]
        vectors = [torch.zeros(states.shape[-1])] * (not len(doc))
        for token in doc:
            pieces = [
                states[i]
                for i, (start, end) in enumerate(encoding.offsets)
                if max(start, token.idx) < min(end, token.idx + len(token))
            ]
            vectors.append(torch.stack(pieces).mean(0) if pieces else torch.zeros(states.shape[-1]))
        means.append(torch.stack(vectors).mean(0))
    return torch.stack(means)


# The teacher


def test_the_vectors_of_originals_are_recorded(bert_dir: Path, other_dir: Path) -> None:
    student, teacher = make_nlp(bert_dir), make_nlp(other_dir)
    vectors = DocVectors(component(student), teacher)
    assert vectors.fields == {"vector": Field("doc", WIDTH, "float32")}
    assert vectors.source == "doc.vector of 'transformer'"
    docs = [teacher.make_doc(text) for text, _ in PAIRS]
    found = vectors.record(docs, [original for _, original in PAIRS])["vector"]
    assert {(each.shape, each.dtype.name) for each in found} == {((1, WIDTH), "float32")}
    reference = transformers.AutoModel.from_pretrained(other_dir).eval()
    originals = [
        teacher.make_doc(text if original is None else original) for text, original in PAIRS
    ]
    with torch.no_grad():
        expected = naive_means(other_dir, reference, originals)
    for i, each in enumerate(found):
        if i != LONG:
            np.testing.assert_allclose(each[0], expected[i], rtol=0, atol=1e-5)
    for each, doc in zip(found, teacher.pipe(originals), strict=True):
        if len(doc):
            np.testing.assert_allclose(each[0], doc.vector, rtol=0, atol=1e-5)
        else:
            assert not each.any()


def test_a_teacher_records_them_beside_its_pipes(teacher: Language, bert_dir: Path) -> None:
    """Those of docs in their own words come from the tensors that the pipes left."""
    student = make_nlp(bert_dir)
    vectors = DocVectors(component(student), teacher)
    hidden = HiddenStates(component(student), component(teacher), [(2, 2)])

    def text(nlp: Language) -> list[Example]:
        examples = examples_of(nlp, [text for text, _ in PAIRS])
        for example, (_, original) in zip(examples, PAIRS, strict=True):
            if original is not None:
                example.predicted.user_data["spacy_distil.original"] = original
        return examples

    transfer_set = read_transfer_set(student, None, text)
    both = TeacherRecorder(teacher, transfer_set, {}, hidden, vectors=vectors)
    alone = TeacherRecorder(teacher, transfer_set, {}, None, vectors=vectors)
    found = both.record(range(len(PAIRS)))[VECTORS]["vector"]
    assert list(alone.fields) == [VECTORS]
    for one, other in zip(found, alone.record(range(len(PAIRS)))[VECTORS]["vector"], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    for vector, (own, original) in zip(found, PAIRS, strict=True):
        doc = teacher(own if original is None else original)
        expected = doc.vector if len(doc) else np.zeros(WIDTH)
        np.testing.assert_allclose(vector[0], expected, rtol=0, atol=1e-5)


# Learning


def test_gradients_are_finite_differences(bert_dir: Path, other_dir: Path) -> None:
    vectors = DocVectors(component(make_nlp(bert_dir)), make_nlp(other_dir))
    rng = np.random.default_rng(0)
    lengths = [3, 0, 1, 4, 2]
    hidden: Any = rng.normal(size=(sum(lengths), WIDTH))
    hidden[8:] = 0  # no piece
    targets: Any = rng.normal(size=(5, 1, WIDTH)).astype("float32")
    targets[3] = 0  # an original without a piece
    records = {"vector": list(targets)}

    def loss_of(states: Any) -> float:
        return vectors.compare(states, lengths, records, 0.7)[0]

    loss, differentiate = vectors.compare(hidden, lengths, records, 0.7)
    expected = 0.7 * sum(
        ((hidden[start:stop].mean(axis=0) - targets[i, 0]) ** 2).mean()
        for i, start, stop in ((0, 0, 3), (2, 3, 4))
    )
    assert loss == pytest.approx(expected, rel=1e-6)
    gradient: Any = differentiate()
    numeric = np.zeros_like(gradient)
    for place in np.ndindex(*hidden[:8].shape):
        for sign in (1, -1):
            moved = hidden.copy()
            moved[place] += sign * 1e-3
            numeric[place] += sign * loss_of(moved) / 2e-3
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-7)
    assert gradient[:4].any(axis=1).all()


def test_the_encoder_gets_the_gradients_of_autograd(bert_dir: Path, other_dir: Path) -> None:
    """Beside the records of hidden states."""
    student, teacher = make_nlp(bert_dir), make_nlp(other_dir)
    vectors = DocVectors(component(student), teacher)
    hidden = HiddenStates(component(student), component(teacher), [(1, 1), (2, 0)])
    texts = [SENTENCES[0], "", SENTENCES[3], "  ", "a   b"]
    examples = examples_of(student, texts)
    docs = [example.predicted for example in examples]
    rows = vectors.record([teacher.make_doc(text) for text in texts], [*SENTENCES])
    states = hidden.record([teacher.make_doc(text) for text in texts])
    losses: dict[str, float] = {}
    update_encoder(
        component(student), examples, [(hidden, states, 0.3), (vectors, rows, 0.7)], losses
    )
    both = {n: p.grad.clone() for n, p in torch_model_of(student).named_parameters()}
    for parameter in torch_model_of(student).parameters():
        parameter.grad = None
    alone: dict[str, float] = {}
    update_encoder(component(student), examples, [(hidden, states, 0.3)], alone)
    model = transformers.AutoModel.from_pretrained(bert_dir).train()
    means = naive_means(bert_dir, model, docs)
    total = torch.tensor(0.0)
    for mean, target, doc in zip(means, rows["vector"], docs, strict=True):
        if any(not token.is_space for token in doc):
            total = total + ((mean - torch.tensor(target[0])) ** 2).mean() * 0.7
    total.backward()  # type: ignore[no-untyped-call]
    name = "transformer"
    assert losses[name] - alone[name] == pytest.approx(total.item(), rel=1e-4)
    own = dict(model.named_parameters())
    n_compared = 0
    for key, parameter in torch_model_of(student).named_parameters():
        expected = own[key].grad
        if expected is not None and expected.any():
            found = both[key] - parameter.grad
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
            n_compared += 1
    assert n_compared > 20


def test_other_widths_are_refused(bert_dir: Path, tmp_path: Path) -> None:
    wide = write_encoder(tmp_path / "wide", "bert", width=48)
    message = "vectors of width 32, and the teacher's of width 48.*an encoder of width 48"
    with pytest.raises(ConfigError, match=message):
        DocVectors(component(make_nlp(bert_dir)), make_nlp(wide))


# Scores


def test_scores_are_those_of_brute_force(bert_dir: Path) -> None:
    student = make_nlp(bert_dir)
    vectors = DocVectors(component(student), student)
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(SENTENCES[0].split(), 4)) for _ in range(12)]
    originals = ["Ann.", "Rome.", *rng.choice(SENTENCES, 6), None, None, None, None]
    examples = examples_of(student, [*texts, "", " "])
    originals += [None, None]
    for example, original in zip(examples, originals, strict=True):
        if original is not None:
            example.predicted.user_data["spacy_distil.original"] = str(original)
    vectors.prepare(examples)
    scores = student.evaluate(examples)
    own = [student(text).vector for text in texts]
    targets = [
        student(text if original is None else str(original)).vector
        for text, original in zip(texts, originals, strict=False)
    ]

    def cosine(one: Any, other: Any) -> float:
        return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))

    expected = np.mean([cosine(*pair) for pair in zip(own, targets, strict=True)])
    assert scores["vectors_cos"] == pytest.approx(expected, abs=1e-5)
    nearest = [max(range(12), key=lambda i: cosine(vector, targets[i])) for vector in own]
    right = [
        np.allclose(targets[place], target, atol=1e-6)
        for place, target in zip(nearest, targets, strict=True)
    ]
    assert scores["vectors_acc"] == pytest.approx(np.mean(right))
    assert 0 < np.mean(right) < 1
    perfect = [Example(example.reference, example.reference) for example in examples]
    assert score_vectors(perfect) == pytest.approx({"vectors_cos": 1.0, "vectors_acc": 1.0})
    assert score_vectors(perfect[-2:]) == {"vectors_cos": 0.0, "vectors_acc": 0.0}


# A run


@pytest.fixture
def config(bert_dir: Path, tmp_path: Path) -> Any:
    """A student that has an encoder alone, and text in two languages."""
    nlp = spacy.blank("en")
    originals = [example.text for example in annotated_examples(nlp, 40)]
    german = [text.replace("visited", "besuchte").replace("We", "Wir") for text in originals]
    lines = [{"text": t, "original": o} for t, o in zip(german, originals, strict=True)]
    (tmp_path / "de.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "en.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in originals))
    config = student_config(bert_dir, tmp_path, ())
    config["nlp"]["lang"] = "xx"
    paths = {lang: str(tmp_path / f"{lang}.jsonl") for lang in ("de", "en")}
    config["corpora"] = {"text": {"@readers": "spacy-distil.Texts.v1", "path": paths}}
    config["corpora"] |= {
        name: {"@readers": "spacy.Corpus.v1", "path": None} for name in ("train", "dev")
    }
    config["training"] |= {"max_steps": 8, "eval_frequency": 4, "score_weights": {}}
    config["distillation"] |= {
        "held_out": 8,
        "student": {"start": "config"},
        "stages": {"vectors": {"share": 1.0}, "soft": {"share": 0.0}},
    }
    return config


def test_a_student_of_vectors_alone(
    config: Any, other_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = make_nlp(other_dir)
    config["training"] |= {"max_steps": 40, "eval_frequency": 20}
    distilled = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    nlp = spacy.load(distilled.path)
    assert nlp.pipe_names == ["transformer"]
    results = json.loads((tmp_path / "out" / "distil.json").read_text())
    assert list(results["languages"]) == ["de", "en"]
    assert results["languages"]["de"]["documents"] == 5
    assert distilled.score == pytest.approx(
        np.mean([own["vectors_cos"] for own in results["languages"].values()]), abs=1e-4
    )
    output = " ".join(capsys.readouterr().out.split())
    assert "chosen by vectors_cos" in output
    assert "VECTORS..." in output or "VECTORS_COS" in output
    assert "German 5 " in output
    # It has learned: of texts that it knows, too.
    lines = map(json.loads, (tmp_path / "de.jsonl").read_text().splitlines())
    start = make_nlp(Path(config["components"]["transformer"]["model"]["name"]))
    closer = [
        np.linalg.norm(nlp(line["text"]).vector - target)
        < np.linalg.norm(start(line["text"]).vector - target)
        for line in lines
        for target in [teacher(line["original"]).vector]
    ]
    assert np.mean(closer) > 0.9


def test_a_resumed_run_ends_with_the_same_student(
    config: Any, other_dir: Path, tmp_path: Path
) -> None:
    stopped: list[bool] = []

    @registry.callbacks("tests.stop_vectors.v1")
    def make() -> Any:
        def stop(nlp: Language, info: dict[str, Any]) -> None:
            if info["step"] == 6 and not stopped:
                stopped.append(True)
                raise RuntimeError("stopped")

        return stop

    teacher = make_nlp(other_dir)
    config["training"]["before_update"] = {"@callbacks": "tests.stop_vectors.v1"}
    with pytest.raises(RuntimeError, match="stopped"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    shards = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "cache").glob("shard*")}
    assert shards
    spacy_distil.distil_pipeline(teacher, config, tmp_path / "out", resume=True)
    assert all(path.stat().st_mtime_ns == time for path, time in shards.items())
    spacy_distil.distil_pipeline(teacher, config, tmp_path / "whole")
    first, second = (spacy.load(tmp_path / name / "model-last") for name in ("out", "whole"))
    assert same(weights_of(first), weights_of(second), atol=0)
    # Another original of a held-out text is another development document.
    path = tmp_path / "de.jsonl"
    first, *rest = path.read_text().splitlines()
    first = json.dumps({**json.loads(first), "original": "Something else."})
    path.write_text("\n".join([first, *rest]))
    with pytest.raises(ConfigError, match="contents of the development documents"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out", resume=True)


def test_originals_are_in_the_fingerprints() -> None:
    nlp = spacy.blank("en")
    examples = examples_of(nlp, ["a", "b"])
    found = set()
    for original in (None, "c", "d"):
        if original is not None:
            examples[0].predicted.user_data["spacy_distil.original"] = original
        docs = [example.predicted for example in examples]
        found |= {fingerprint_docs(docs), fingerprint_annotation(examples)}
    assert len(found) == 6


def test_a_stage_of_pipes_needs_pipes(config: Any, other_dir: Path, tmp_path: Path) -> None:
    config["distillation"]["stages"] = {"vectors": {"share": 0.5}, "soft": {"share": 0.5}}
    with pytest.raises(ConfigError, match=r"stages\.soft\] learns soft targets or annotation, but"):
        spacy_distil.distil_pipeline(make_nlp(other_dir), config, tmp_path / "out")


def test_an_encoder_that_cannot_learn_vectors(bert_dir: Path, tmp_path: Path) -> None:
    from spacy_distil.distillation.pipeline.config import load_config

    config = student_config(bert_dir, tmp_path, ())
    config["distillation"]["stages"] = {"vectors": {"share": 1.0}}
    settings = load_config(config)
    nlp = make_nlp(bert_dir)
    with pytest.raises(ConfigError, match=r"frozen, and cannot learn doc vectors.*for vectors"):
        make_vectors(nlp, nlp, settings, ["transformer"])
    with pytest.raises(ConfigError, match="whose doc vectors could be learned"):
        make_vectors(spacy.blank("en"), nlp, settings, [])
    assert make_vectors(nlp, nlp, settings, []) is not None


def test_translations_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        {"text": "Wort " * 30, "original": "word"},
        {"text": "word " * 30},
        {"text": "Satz", "original": None},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    nlp = spacy.blank("xx")
    docs = [example.predicted for example in Texts(str(path), max_words=10)(nlp)]
    assert [len(doc) for doc in docs] == [30, 10, 10, 10, 1]
    assert [doc.user_data.get("spacy_distil.original") for doc in docs] == ["word", *[None] * 4]
