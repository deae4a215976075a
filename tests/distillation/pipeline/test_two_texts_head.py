"""Teaching pipes that read two texts together: losses, gradients and whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from scipy.special import log_softmax, softmax
from spacy.language import Language
from spacy.training import Example
from thinc.api import Config

from spacy_distil.cli.configs import pipeline_config
from spacy_distil.cli.teacher_pipes import read_teacher_pipes
from spacy_distil.distillation import distil_pipeline
from spacy_distil.distillation.pipeline.heads import PipeSettings
from spacy_distil.distillation.pipeline.heads.two_texts import PairHead, QAHead
from spacy_distil.errors import ConfigError
from spacy_distil.export.quantize import quantize
from tests.pairs.conftest import LABELS, ODD, build, pair_example
from tests.util import SENTENCES, write_encoder

PAIRS = [
    (SENTENCES[0], SENTENCES[1], "entailment"),
    ("Ann left.", "She left.", None),
    ("", "No.", "neutral"),
    (SENTENCES[2], ODD[4], "contradiction"),
]


def heads(teacher: Language, student: Language, kind: Any, name: str, **settings: Any) -> Any:
    pipes: list[Any] = [nlp.get_pipe(name) for nlp in (student, teacher)]
    return kind(*pipes, PipeSettings(**settings))


@pytest.fixture
def teacher_and_student(bert_dir: Path, tmp_path: Path) -> tuple[Language, Language]:
    other = write_encoder(tmp_path / "teacher", "roberta", seed=3)
    return build(other), build(bert_dir)


@pytest.mark.parametrize("output", ["classes", "probability", "number"])
def test_the_loss_of_pairs(output: str, teacher_and_student: tuple[Language, Language]) -> None:
    teacher, student = teacher_and_student
    for nlp in (teacher, student):
        nlp.get_pipe("pair").cfg["output"] = output  # type: ignore[attr-defined]
    head = heads(teacher, student, PairHead, "pair", temperature=2.0, weight=0.5)
    batch = [pair_example(student, *pair) for pair in PAIRS]
    plain = Example(student.make_doc("x"), student.make_doc("x"))
    docs = [pair_example(teacher, *pair).predicted for pair in PAIRS]
    records = head.record([*docs, teacher.make_doc("x")])
    pipe: Any = teacher.get_pipe("pair")
    expected = pipe.model.predict([(doc, pair[1]) for doc, pair in zip(docs, PAIRS, strict=True)])
    np.testing.assert_allclose(np.concatenate(records["logits"][:4]), expected, atol=1e-5)
    assert np.isnan(records["logits"][4]).all()
    logits = student.get_pipe("pair").model.predict(  # type: ignore[attr-defined]
        [(each.predicted, pair[1]) for each, pair in zip(batch, PAIRS, strict=True)]
    )
    if output == "classes":
        p, q = (log_softmax(each / 2, axis=1) for each in (expected, logits))
        loss = 4 * (np.exp(p) * (p - q)).sum()
    elif output == "probability":
        t, s = (1 / (1 + np.exp(-each / 2)) for each in (expected, logits))
        loss = 4 * (t * np.log(t / s) + (1 - t) * np.log((1 - t) / (1 - s))).sum()
    else:
        loss = 0.5 * ((expected - logits) ** 2).sum()
    losses: dict[str, float] = {}
    student.get_pipe("transformer").update([*batch, plain])  # type: ignore[attr-defined]
    head.update([*batch, plain], records, soft=1.0, gold=0.0, drop=0.0, losses=losses)
    assert losses["pair"] == pytest.approx(0.5 * loss, rel=1e-4)


def test_gradients_of_both_parts(teacher_and_student: tuple[Language, Language]) -> None:
    """The gradient that the model gets, by differences of the loss."""
    teacher, student = teacher_and_student
    head = heads(teacher, student, PairHead, "pair", temperature=1.5, weight=0.5)
    batch = [pair_example(student, *pair) for pair in PAIRS]
    records = head.record([pair_example(teacher, *pair).predicted for pair in PAIRS])
    pipe: Any = student.get_pipe("pair")
    generator = np.random.default_rng(0)
    values = generator.normal(size=(4, 3)).astype("f")
    given: list[Any] = []

    class Model:
        ops = pipe.model.ops

        def begin_update(self, pairs: Any) -> Any:
            assert len(pairs) == 4
            return values.copy(), given.append

        def walk(self) -> list[Any]:
            return []

    pipe.model = Model()

    def loss_of() -> float:
        return float(head._learn(batch, records, 0.7, 0.3, 0.0))

    start = loss_of()
    (gradient,) = given
    for place in np.ndindex(values.shape):
        values[place] += 1e-2
        above = loss_of()
        values[place] -= 2e-2
        below = loss_of()
        values[place] += 1e-2
        # The pipe's weight is in the gradient, and comes to the loss later.
        assert 0.5 * (above - below) / 2e-2 == pytest.approx(gradient[place], abs=2e-3)
    gold = -np.log(softmax(values[[0, 2, 3]], axis=1)[range(3), [0, 1, 2]]).sum()
    targets = np.concatenate(records["logits"])
    p, q = (log_softmax(each / 1.5, axis=1) for each in (targets, values))
    soft = 1.5**2 * (np.exp(p) * (p - q)).sum()
    assert start == pytest.approx(0.7 * soft + 0.3 * gold, rel=1e-4)


@pytest.mark.parametrize("no_answer", [True, False])
def test_the_loss_of_questions(no_answer: bool, bert_dir: Path, tmp_path: Path) -> None:
    teacher = build(write_encoder(tmp_path / "teacher", "roberta", seed=3), "distil_qa")
    student = build(bert_dir, "distil_qa", window=24, overlap=4)
    student.get_pipe("qa").cfg["no_answer"] = no_answer  # type: ignore[attr-defined]
    head = heads(teacher, student, QAHead, "qa", temperature=2.0)
    questions = {SENTENCES[0]: ["Who?", "When?"], "": ["Why?"], SENTENCES[1]: []}
    batch, docs = [], []
    for text, own in questions.items():
        for nlp, found in ((student, batch), (teacher, docs)):
            doc = nlp.make_doc(text)
            doc._.questions = own
            found.append(doc)
    records = head.record(docs)
    assert [len(rows) for rows in records["logits"]] == [2 * (1 + len(docs[0])), 1, 0]
    pipe: Any = student.get_pipe("qa")
    loss = 0.0
    for doc, own, rows in zip(batch, questions.values(), records["logits"], strict=True):
        n = 1 + len(doc)
        for i, question in enumerate(own):
            (logits,) = pipe.predict_pairs([(question, doc)])
            first = 0 if no_answer else 1
            for column in (0, 1) if n > first else ():
                sides = rows[i * n : (i + 1) * n][first:, column], logits[first:, column]
                p, q = (log_softmax(side / 2) for side in sides)
                loss += 0.5 * 4 * float((np.exp(p) * (p - q)).sum())
    losses: dict[str, float] = {}
    examples = [Example(doc, doc.copy()) for doc in batch]
    student.get_pipe("transformer").update(examples)  # type: ignore[attr-defined]
    head.update(examples, records, soft=1.0, gold=0.0, drop=0.0, losses=losses)
    assert losses["qa"] == pytest.approx(loss, rel=1e-3)


def test_other_outputs_do_not_suit(teacher_and_student: tuple[Language, Language]) -> None:
    teacher, student = teacher_and_student
    student.get_pipe("pair").cfg["output"] = "number"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="has output = 'number', but the teacher's"):
        heads(teacher, student, PairHead, "pair")
    student.get_pipe("pair").cfg |= {"output": "classes", "other": "hyp"}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"other = 'hyp' .* the teacher reads doc._.other"):
        heads(teacher, student, PairHead, "pair")


def distil(teacher: Path, tmp_path: Path, **overrides: Any) -> Any:
    pipes = read_teacher_pipes(str(teacher))
    text = pipeline_config(teacher=pipes, gpu=False)
    (tmp_path / "student.cfg").write_text(text)
    return distil_pipeline(
        str(teacher),
        Config().from_str(text, interpolate=False),
        tmp_path / "student",
        overrides={
            "training.max_steps": 12,
            "training.eval_frequency": 6,
            "training.optimizer.learn_rate": 0.002,
            "distillation.student.n_layers": 1,
            "distillation.corpus": None,
            **overrides,
        },
    )


def test_a_run_on_pairs(bert_dir: Path, tmp_path: Path) -> None:
    """From the teacher to int8: labels, texts beside docs, scores, agreement."""
    teacher = build(bert_dir)
    teacher.to_disk(tmp_path / "teacher")
    path = tmp_path / "pairs.jsonl"
    lines = [
        {"text": text, "other": other, **({} if label is None else {"label": label})}
        for text, other, label in PAIRS * 4
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    distil(tmp_path / "teacher", tmp_path, **{"paths.train": str(path), "paths.dev": str(path)})
    student = spacy.load(tmp_path / "student" / "model-best")
    pipe: Any = student.get_pipe("pair")
    assert set(pipe.labels) == set(LABELS)
    texts = [pair[:2] for pair in PAIRS]
    expected = teacher.get_pipe("pair").classify(texts)  # type: ignore[attr-defined]
    copied = build(bert_dir, layer=1)
    copied.get_pipe("pair").model.get_ref("hidden")  # type: ignore[attr-defined]
    found = pipe.classify(texts)
    assert divergence(expected, found) < 0.2
    result = quantize(tmp_path / "student" / "model-best", tmp_path / "int8", min_agreement=0.5)
    measure = next(each for each in result.agreement.measures if each.pipe == "pair")
    assert measure.annotation == "doc.cats"
    assert measure.max_difference is not None
    assert measure.max_difference > 0
    int8: Any = spacy.load(tmp_path / "int8").get_pipe("pair")
    assert divergence(found, int8.classify(texts)) < 0.01


def divergence(left: list[dict[str, float]], right: list[dict[str, float]]) -> float:
    return float(
        np.mean(
            [
                sum(p * np.log(p / other[label]) for label, p in own.items())
                for own, other in zip(left, right, strict=True)
            ]
        )
    )


def test_a_run_on_questions(bert_dir: Path, tmp_path: Path) -> None:
    teacher = build(bert_dir, "distil_qa")
    teacher.to_disk(tmp_path / "teacher")
    path = tmp_path / "squad.json"
    answers = [{"text": "Ann", "answer_start": 0}]
    paragraphs = [
        {
            "context": SENTENCES[0],
            "qas": [
                {"question": "Who visited?", "answers": answers},
                {"question": "Why?", "answers": [], "is_impossible": True},
            ],
        }
    ]
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs * 4}]}))
    distil(tmp_path / "teacher", tmp_path, **{"paths.train": str(path), "paths.dev": str(path)})
    student = spacy.load(tmp_path / "student" / "model-best")
    doc = SENTENCES[0]
    sides = []
    for nlp in (teacher, student):
        pipe: Any = nlp.get_pipe("qa")
        (logits,) = pipe.predict_pairs([("Who visited?", nlp(doc))])
        sides.append(log_softmax(logits, axis=0))
    assert float((np.exp(sides[0]) * (sides[0] - sides[1])).sum()) < 0.5
    result = quantize(tmp_path / "student" / "model-best", tmp_path / "int8", min_agreement=0.0)
    measure = next(each for each in result.agreement.measures if each.pipe == "qa")
    assert (measure.annotation, measure.unit) == ("doc._.answers", "questions")
    assert measure.n > 0
