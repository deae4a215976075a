"""Text classifiers that learn from a text classifier, for each of spaCy's architectures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import spacy
import torch
import torch.nn.functional as F
from spacy.tokens import Doc

from spacy_distil.distillation.pipeline.heads.base import PipeSettings
from spacy_distil.distillation.pipeline.heads.textcat import TextcatHead
from spacy_distil.errors import ConfigError
from tests.distillation.pipeline.util import (
    CNN,
    gradients,
    head_of,
    learn,
    norm,
    parameters,
    randomize,
    record,
    unlabelled,
)
from tests.util import make_examples, same

LABELS = ("travel", "food", "sport")
BOW = {
    "@architectures": "spacy.TextCatBOW.v3",
    "ngram_size": 1,
    "no_output_layer": False,
    "length": 256,
}
REDUCE = {
    "@architectures": "spacy.TextCatReduce.v1",
    "use_reduce_first": True,
    "use_reduce_last": False,
    "use_reduce_max": True,
    "use_reduce_mean": True,
    "tok2vec": CNN,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "reduce": REDUCE,
    "cnn": {"@architectures": "spacy.TextCatCNN.v2", "tok2vec": CNN},
    "bow": BOW,
    "ensemble": {
        "@architectures": "spacy.TextCatEnsemble.v2",
        "tok2vec": CNN,
        "linear_model": BOW,
    },
    "attention": {
        "@architectures": "spacy.TextCatParametricAttention.v1",
        "tok2vec": CNN,
    },
}
ALL = pytest.mark.parametrize(
    ("kind", "architecture"),
    [(kind, name) for kind in ("textcat", "textcat_multilabel") for name in ARCHITECTURES],
)
make_head = partial(head_of, TextcatHead)
# One of each output layer: softmax, softmax_activation, logistic.
EACH_OUTPUT = pytest.mark.parametrize(
    ("kind", "architecture"),
    [("textcat", "reduce"), ("textcat", "bow"), ("textcat_multilabel", "reduce")],
)


def make_config(
    kind: str, architecture: str, *, exclusive: bool | None = None, **settings: Any
) -> dict[str, Any]:
    config = {**ARCHITECTURES[architecture], **settings}
    setting = {"exclusive_classes": kind == "textcat" if exclusive is None else exclusive}
    if "linear_model" in config:
        return {**config, "linear_model": {**config["linear_model"], **setting}}
    return {**config, **setting}


def make_pipe(
    kind: str, architecture: str, seed: int = 0, labels: Sequence[str] = LABELS, **settings: Any
) -> Any:
    """A pipeline of one pipe with random weights."""
    nlp = spacy.blank("xx")
    config = {"model": make_config(kind, architecture, **settings)}
    pipe: Any = nlp.add_pipe(kind, name="pipe", config=config)
    for label in labels:
        pipe.add_label(label)
    nlp.initialize(lambda: make_examples(nlp, 4))
    randomize(pipe.model, seed, scale=0.3)
    return nlp


def torch_loss(kind: str, logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> Any:
    """The loss as it is stated."""
    logits, targets = logits / temperature, targets / temperature
    if kind == "textcat":
        probs = F.softmax(targets, dim=1)
        loss = F.kl_div(F.log_softmax(logits, dim=1), probs, reduction="sum")
    else:
        probs = torch.sigmoid(targets)
        loss = F.kl_div(F.logsigmoid(logits), probs, reduction="sum")
        loss = loss + F.kl_div(F.logsigmoid(-logits), 1 - probs, reduction="sum")
    return loss * temperature**2


def logits_of(kind: str, student: Any, docs: Sequence[Doc]) -> torch.Tensor:
    """Logits that stand for what the student says, (n_docs, n_labels) float64."""
    probs = torch.tensor(student.get_pipe("pipe").model.predict(docs), dtype=torch.float64)
    return probs.log() if kind == "textcat" else torch.logit(probs)


# Recording


@ALL
def test_records_scores_in_the_order_of_the_student(kind: str, architecture: str) -> None:
    student = make_pipe(kind, architecture)
    teacher = make_pipe(kind, architecture, seed=1, labels=LABELS[::-1])
    head, examples = make_head(student, teacher), make_examples(student, 4)
    assert head.fields.keys() == {"scores"}
    field = head.fields["scores"]
    records = record(head, teacher, examples)["scores"]
    assert (field.per, field.width, field.dtype) == ("doc", len(LABELS), "float32")
    for example, scores in zip(examples, records, strict=True):
        assert scores.shape == (1, len(LABELS))
        assert scores.dtype == field.dtype
        cats = teacher(" ".join(token.text for token in example.predicted)).cats
        odds = 1.0 if kind == "textcat" else [1 - cats[label] for label in LABELS]
        expected = np.array([cats[label] for label in LABELS]) / odds
        np.testing.assert_allclose(np.exp(scores[0]), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [("textcat", "cnn"), ("textcat", "bow"), ("textcat_multilabel", "cnn")],
)
def test_docs_without_tokens_are_passed_over(kind: str, architecture: str) -> None:
    student, teacher = (make_pipe(kind, architecture, seed) for seed in (0, 1))
    head = make_head(student, teacher)
    filled, empty = make_examples(student, 2), unlabelled(student, [[], []])
    assert learn(head, empty, record(head, teacher, empty), soft=1.0) == (0.0, {})
    expected = learn(head, filled, record(head, teacher, filled), soft=1.0)
    mixed = [empty[0], *filled, empty[1]]
    loss, grads = learn(head, mixed, record(head, teacher, mixed), soft=1.0)
    assert loss == pytest.approx(expected[0], rel=1e-5)
    assert same(grads, expected[1])


# Learning


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@ALL
def test_the_gradient_is_that_of_the_loss(kind: str, architecture: str, temperature: float) -> None:
    """Of all parameters along one direction, by finite differences of torch's loss."""
    student, teacher = (make_pipe(kind, architecture, seed) for seed in (0, 1))
    head = make_head(student, teacher, temperature=temperature)
    examples = make_examples(student, 6)
    docs = [example.predicted for example in examples]
    records = record(head, teacher, examples)
    targets = torch.tensor(np.concatenate(records["scores"]), dtype=torch.float64)
    loss, grads = learn(head, examples, records, soft=1.0)
    expected = torch_loss(kind, logits_of(kind, student, docs), targets, temperature).item()
    assert loss == pytest.approx(expected, rel=1e-4)
    nodes = list(student.get_pipe("pipe").model.walk())
    before = parameters(student.get_pipe("pipe").model)
    length = norm(grads)
    assert length > 0.05
    step, moved_losses = 2e-3, []
    for sign in (1, -1):
        for (i, name), grad in grads.items():
            nodes[i].set_param(name, before[i, name] + sign * step * grad / length)
        logits = logits_of(kind, student, docs)
        moved_losses.append(torch_loss(kind, logits, targets, temperature).item())
    difference = (moved_losses[0] - moved_losses[1]) / (2 * step)
    assert length == pytest.approx(difference, rel=0.01)


@EACH_OUTPUT
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_the_gradient_of_the_logits_equals_autograd(
    kind: str, architecture: str, temperature: float
) -> None:
    """The gradient of the last linear layer's bias: the sum of the logits' gradients."""
    student, teacher = (make_pipe(kind, architecture, seed) for seed in (0, 1))
    head = make_head(student, teacher, temperature=temperature)
    examples = make_examples(student, 6)
    records = record(head, teacher, examples)
    targets = torch.tensor(np.concatenate(records["scores"]), dtype=torch.float64)
    logits = logits_of(kind, student, [example.predicted for example in examples])
    logits.requires_grad_()
    torch_loss(kind, logits, targets, temperature).backward()
    head.update(examples, records, soft=1.0, gold=0.0, drop=0.0, losses={})
    layer = student.get_pipe("pipe").model.get_ref("output_layer")
    assert logits.grad is not None
    np.testing.assert_allclose(layer.get_grad("b"), logits.grad.sum(dim=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["reduce", "cnn", "ensemble", "attention"])
def test_a_sure_teacher_equals_gold(architecture: str) -> None:
    """The gradients are compared, of which an optimizer would hide the scale."""
    plain, student = make_pipe("textcat", architecture), make_pipe("textcat", architecture)
    plain.get_pipe("pipe").update(make_examples(plain))
    expected = gradients(plain.get_pipe("pipe").model)
    head, examples = make_head(student, plain), make_examples(student)
    scores = []
    for example in examples:
        cats = example.reference.cats
        sure = [[0.0 if cats.get(label) else -1e4 for label in LABELS]]
        scores.append(np.array(sure, dtype="float32"))
    _, grads = learn(head, examples, {"scores": scores}, soft=1.0)
    assert same(grads, expected, atol=1e-5)
    assert norm(expected) > 0.5


@ALL
def test_gold_alone_is_a_plain_update(kind: str, architecture: str) -> None:
    plain, student = make_pipe(kind, architecture), make_pipe(kind, architecture)
    losses = plain.get_pipe("pipe").update(make_examples(plain))
    head = make_head(student, plain)
    examples = make_examples(student)
    loss, grads = learn(head, examples, {}, gold=1.0)
    # spaCy's loss is the mean over docs and labels.
    assert loss == pytest.approx(losses["pipe"] * len(examples) * len(LABELS), rel=1e-5)
    expected = gradients(plain.get_pipe("pipe").model)
    assert same(grads, expected)
    assert norm(grads) > 0.05
    alone = TextcatHead(student.get_pipe("pipe"), None, PipeSettings())
    assert alone.fields == {}
    assert same(learn(alone, examples, {}, gold=1.0)[1], expected)


@ALL
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(
    kind: str, architecture: str
) -> None:
    student, same_weights, other = (make_pipe(kind, architecture, seed) for seed in (0, 0, 1))
    results = []
    for teacher in (same_weights, other):
        head = make_head(student, teacher, temperature=2.0)
        examples = make_examples(student, 4)
        records = record(head, teacher, examples)
        results.append(learn(head, examples, records, soft=1.0))
    (loss, grads), (other_loss, other_grads) = results
    assert abs(loss) < 1e-5 < 1e-2 < other_loss
    assert norm(grads) < 1e-4 * norm(other_grads)


@EACH_OUTPUT
def test_soft_and_gold_are_weighted_and_summed(kind: str, architecture: str) -> None:
    student, teacher = (make_pipe(kind, architecture, seed) for seed in (0, 1))
    head, examples = make_head(student, teacher, temperature=2.0), make_examples(student)
    records = record(head, teacher, examples)
    soft_loss, soft = learn(head, examples, records, soft=1.0)
    gold_loss, gold = learn(head, examples, records, gold=1.0)
    heavy = make_head(student, teacher, temperature=2.0, weight=3.0)
    loss, mixed = learn(heavy, examples, records, soft=0.3, gold=0.7)
    expected = {name: 3 * (0.3 * soft[name] + 0.7 * gold[name]) for name in soft}
    assert loss == pytest.approx(3 * (0.3 * soft_loss + 0.7 * gold_loss), rel=1e-5)
    assert same(mixed, expected, atol=1e-4)
    assert norm({name: soft[name] - gold[name] for name in soft}) > 0.1


@EACH_OUTPUT
def test_soft_and_gold_with_weight_and_temperature_equal_autograd(
    kind: str, architecture: str
) -> None:
    """The gradient of the last linear layer's bias, as above."""
    student, teacher = (make_pipe(kind, architecture, seed) for seed in (0, 1))
    head = make_head(student, teacher, temperature=2.0, weight=3.0)
    examples = make_examples(student, 6)
    records = record(head, teacher, examples)
    targets = torch.tensor(np.concatenate(records["scores"]), dtype=torch.float64)
    logits = logits_of(kind, student, [example.predicted for example in examples])
    logits.requires_grad_()
    cats = [[eg.reference.cats.get(label, 0.0) for label in LABELS] for eg in examples]
    gold = torch.tensor(cats, dtype=torch.float64)
    probs = logits.softmax(1) if kind == "textcat" else logits.sigmoid()
    wrong = probs - gold
    if kind == "textcat_multilabel":  # of which no annotation says whether it applies
        wrong = wrong * torch.tensor([label in examples[0].reference.cats for label in LABELS])
    squares = (wrong**2).sum()
    # thinc's softmax takes the gradient of the cross-entropy, its activations of squared errors.
    is_softmax = architecture == "reduce" and kind == "textcat"
    gold_loss = -(gold * logits.log_softmax(1)).sum() if is_softmax else squares / 2
    soft_loss = torch_loss(kind, logits, targets, 2.0)
    (3 * (0.3 * soft_loss + 0.7 * gold_loss)).backward()
    losses: dict[str, float] = {}
    head.update(examples, records, soft=0.3, gold=0.7, drop=0.0, losses=losses)
    expected = 3 * (0.3 * soft_loss.item() + 0.7 * squares.item())
    assert losses["pipe"] == pytest.approx(expected, rel=1e-4)
    found = student.get_pipe("pipe").model.get_ref("output_layer").get_grad("b")
    assert logits.grad is not None
    np.testing.assert_allclose(found, logits.grad.sum(dim=0), rtol=1e-4, atol=1e-5)


@EACH_OUTPUT
def test_docs_without_annotation_have_no_gold(kind: str, architecture: str) -> None:
    student, teacher = (make_pipe(kind, architecture, seed) for seed in (0, 1))
    head = make_head(student, teacher)
    raw, annotated = make_examples(student, 4, drop=["cats"]), make_examples(student, 3, start=8)
    raw[0].reference.cats = {"label of another pipe": 1.0}
    records = record(head, teacher, raw)
    _, soft = learn(head, raw, records, soft=1.0)
    _, both = learn(head, raw, records, soft=1.0, gold=1.0)
    assert same(both, soft)
    loss, nothing = learn(head, raw, records, gold=1.0)
    assert loss == 0
    assert norm(nothing) == 0
    mixed = [raw[0], *annotated, raw[1]]
    loss, grads = learn(head, mixed, record(head, teacher, mixed), gold=1.0)
    expected = learn(head, annotated, {}, gold=1.0)
    assert loss == pytest.approx(expected[0], rel=1e-5)
    assert same(grads, expected[1], atol=1e-5)


@EACH_OUTPUT
def test_certainty_on_both_sides_is_borne(kind: str, architecture: str) -> None:
    """Where probabilities are exactly 0 and 1."""
    student, teacher = (make_pipe(kind, architecture, seed) for seed in (0, 1))
    for nlp in (student, teacher):
        layer = nlp.get_pipe("pipe").model.get_ref("output_layer")
        layer.set_param("W", layer.get_param("W") * 1e4)
    for temperature in (1.0, 0.5, 4.0):
        head, examples = (
            make_head(student, teacher, temperature=temperature),
            make_examples(student),
        )
        probs = student.get_pipe("pipe").model.predict([example.predicted for example in examples])
        assert probs.max() == 1
        loss, grads = learn(head, examples, record(head, teacher, examples), soft=1.0)
        assert np.isfinite(loss)
        assert all(np.isfinite(grad).all() for grad in grads.values())


def test_the_source_tells_log_probs_from_log_odds() -> None:
    teacher = make_pipe("textcat", "reduce", seed=1)
    log_probs = make_head(make_pipe("textcat", "reduce"), teacher).source
    log_odds = make_head(make_pipe("textcat", "reduce", exclusive=False), teacher).source
    other_order = make_pipe("textcat", "reduce", labels=LABELS[::-1])
    assert len({log_probs, log_odds, make_head(other_order, teacher).source}) == 3
    assert make_head(make_pipe("textcat", "cnn"), teacher).source == log_probs


# Errors


def test_other_labels_are_refused() -> None:
    student = make_pipe("textcat", "bow")
    with pytest.raises(ConfigError, match="Only the teacher: politics"):
        make_head(student, make_pipe("textcat", "bow", labels=[*LABELS, "politics"]))


def test_a_student_without_output_layer_is_refused() -> None:
    student = make_pipe("textcat", "bow", no_output_layer=True)
    with pytest.raises(ConfigError, match="no_output_layer = false"):
        make_head(student, make_pipe("textcat", "bow"))


def test_a_teacher_that_gives_no_probabilities_is_refused() -> None:
    student, teacher = (
        make_pipe("textcat", "bow"),
        make_pipe("textcat", "bow", no_output_layer=True),
    )
    head = make_head(student, teacher)
    with pytest.raises(ConfigError, match="expected probabilities"):
        record(head, teacher, make_examples(student, 4))


def test_a_student_that_diverged_is_reported() -> None:
    student, teacher = make_pipe("textcat", "reduce"), make_pipe("textcat", "reduce", seed=1)
    head, examples = make_head(student, teacher), make_examples(student, 2)
    records = record(head, teacher, examples)
    layer = student.get_pipe("pipe").model.get_ref("output_layer")
    layer.set_param("W", layer.get_param("W") * np.nan)
    with pytest.raises(ValueError, match="E910"):
        learn(head, examples, records, soft=1.0)
