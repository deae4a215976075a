"""Pipes that choose a label per token, and learn from a pipe of the same kind."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
from spacy.morphology import Morphology
from spacy.pipeline import Tagger
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Linear, chain, with_array

from spacy_distil.distillation.pipeline.heads.base import PipeSettings, UnsuitedError
from spacy_distil.distillation.pipeline.heads.softmax import TOP_K, SoftmaxHead, output_layer
from spacy_distil.errors import ConfigError
from spacy_distil.ner.schemes import Scheme, tag_names
from tests.distillation.pipeline.util import (
    CNN,
    gradients,
    head_of,
    learn,
    norm,
    parameters,
    randomize,
    record,
    texts_of,
    unlabelled,
)
from tests.util import adam, make_examples, make_nlp, same, torch_model_of, weights_of

KINDS = ("tagger", "morphologizer", "senter", "trainable_lemmatizer", "distil_ner")
ALL_KINDS = pytest.mark.parametrize("kind", KINDS)
TAGGER = {"@architectures": "spacy.Tagger.v2", "tok2vec": CNN}
make_head = partial(head_of, SoftmaxHead)
MANY_TAGS = [f"X{i}" for i in range(20)]


def gold_examples(nlp: Any, n: int = 8) -> list[Example]:
    """As `make_examples`, with lemmas, and a sentence that starts at "in"."""
    examples = make_examples(nlp, n)
    for example in examples:
        for token in example.reference:
            token.lemma_ = token.lower_.removesuffix("ed")
            token.is_sent_start = token.i == 0 or token.text == "in"
    return examples


def raw_examples(nlp: Any, n: int = 4) -> list[Example]:
    """Docs without annotation."""
    return unlabelled(nlp, texts_of(make_examples(nlp, n)))


def make_pipe(kind: str, seed: int = 0, tags: Sequence[str] = (), config: Any = None) -> Any:
    """A pipeline of one pipe with random weights."""
    nlp = spacy.blank("xx")
    extra = {"min_tree_freq": 1} if kind == "trainable_lemmatizer" else {}
    pipe: Any = nlp.add_pipe(kind, name="pipe", config={"model": TAGGER, **extra, **(config or {})})
    for tag in tags:
        pipe.add_label(tag)
    nlp.initialize(lambda: gold_examples(nlp))
    randomize(pipe.model, seed)
    return nlp


def stored(head: SoftmaxHead, records: Any) -> Any:
    """The same in the number formats of the disk."""
    formats = {name: field.dtype for name, field in head.fields.items()}
    return {name: [each.astype(formats[name]) for each in records[name]] for name in records}


def gold_labels(kind: str, pipe: Any, example: Example) -> list[int]:
    """The number of each token's right label, worked out from the annotation."""
    tokens = list(example.reference)
    if kind == "tagger":
        return [pipe.labels.index(token.tag_) for token in tokens]
    if kind == "senter":
        return [int(token.is_sent_start) for token in tokens]
    if kind == "distil_ner":
        iob = [f"U-{token.ent_type_}" if token.ent_type_ else "O" for token in tokens]
        return [tag_names(pipe.labels).index(tag) for tag in iob]
    if kind == "trainable_lemmatizer":
        trees = [pipe.trees.add(token.text, token.lemma_) for token in tokens]
        return [pipe.labels.index(tree) for tree in trees]
    names = []
    for token in tokens:
        features = {**Morphology.feats_to_dict(str(token.morph)), "POS": token.pos_}
        names.append(pipe.vocab.strings[pipe.vocab.morphology.add(features)])
    return [pipe.labels.index(name) for name in names]


def sure_records(kind: str, head: SoftmaxHead, examples: Sequence[Example]) -> Any:
    """Of a teacher that is sure of the gold labels."""
    k = head.fields["labels"].width
    records: dict[str, list[np.ndarray]] = {"labels": [], "log_probs": []}
    for example in examples:
        gold = np.array(gold_labels(kind, head.student, example))
        n_labels = output_layer(head.student.model).get_dim("nO")
        records["labels"].append(((gold[:, None] + np.arange(k)) % n_labels).astype("int16"))
        log_probs = np.full((len(gold), k), -1e4, dtype="float16")
        log_probs[:, 0] = 0
        records["log_probs"].append(log_probs)
    return records


# Recording


@pytest.mark.parametrize("kind", ["tagger", "distil_ner"])
def test_records_the_most_probable_labels(kind: str) -> None:
    """Against a loop over tokens. The labels come in another order on either side."""
    student = make_pipe(kind, tags=MANY_TAGS)
    teacher = make_pipe(kind, seed=1, tags=MANY_TAGS[::-1])
    head = make_head(student, teacher)
    examples = raw_examples(student)
    records = record(head, teacher, examples)
    pipes = [student.get_pipe("pipe"), teacher.get_pipe("pipe")]
    own, others = ([*p.labels] if kind == "tagger" else tag_names(p.labels) for p in pipes)
    assert own != others
    for example, labels, log_probs in zip(
        examples, records["labels"], records["log_probs"], strict=True
    ):
        doc = Doc(teacher.vocab, words=[token.text for token in example.predicted])
        logits = torch.tensor(pipes[1].model.predict([doc])[0], dtype=torch.float64)
        assert labels.shape == log_probs.shape == (len(doc), TOP_K)
        assert (labels.dtype, log_probs.dtype) == (np.int16, np.float32)
        for token in range(len(doc)):
            values, numbers = torch.log_softmax(logits[token], dim=0).topk(TOP_K)
            assert [own[i] for i in labels[token]] == [others[i] for i in numbers]
            np.testing.assert_allclose(log_probs[token], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("theirs", "own"),
    [("IOB2", "BILUO"), ("IO", "BILUO"), ("IOB1", "IOB2"), ("BILUO", "IO"), ("IOB1", "IOB1")],
)
def test_schemes_of_entities_may_differ(theirs: Scheme, own: Scheme) -> None:
    """Against the distribution of the whole corpus, token by token."""
    student = make_pipe("distil_ner", tags=("LOC", "PER"), config={"scheme": own})
    teacher = make_pipe("distil_ner", seed=1, tags=("PER", "LOC"), config={"scheme": theirs})
    head = make_head(student, teacher)
    examples = [*raw_examples(student), *unlabelled(student, [["a", " ", "b", "\n"], []])]
    records = record(head, teacher, examples)
    pipes = [student.get_pipe("pipe"), teacher.get_pipe("pipe")]
    names, others = (pipe.tag_names for pipe in pipes)
    for example, labels, log_probs in zip(
        examples, records["labels"], records["log_probs"], strict=True
    ):
        assert labels.shape == log_probs.shape == (len(example.predicted), len(names))
        if not len(labels):
            continue
        words = [token.text for token in example.predicted]
        doc = Doc(teacher.vocab, words=words)
        logits = torch.tensor(pipes[1].model.predict([doc])[0], dtype=torch.float64)
        found = np.zeros(log_probs.shape)
        np.put_along_axis(found, labels.astype(int), np.exp(log_probs), axis=1)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
        spaces = np.array([word.isspace() for word in words])
        for label in {"O", *pipes[0].labels}:
            columns = [[name.split("-")[-1] == label for name in each] for each in (names, others)]
            expected = torch.softmax(logits, dim=1)[:, columns[1]].sum(dim=1).numpy()
            # Whitespace has no vote.
            mine = ~spaces if own != theirs else np.ones(len(words), dtype=bool)
            np.testing.assert_allclose(
                found[:, columns[0]].sum(axis=1)[mine], expected[mine], atol=1e-5
            )
        loss, _ = learn(head, [example], {"labels": [labels], "log_probs": [log_probs]}, soft=1.0)
        assert np.isfinite(loss)


def test_a_student_of_iob1_needs_a_teacher_of_iob1() -> None:
    student = make_pipe("distil_ner", tags=("A",), config={"scheme": "IOB1"})
    teacher = make_pipe("distil_ner", seed=1, tags=("A",))
    with pytest.raises(UnsuitedError, match="scheme = 'IOB1', whose tags depend on the entity"):
        make_head(student, teacher)


@ALL_KINDS
def test_fields_fit_what_is_recorded(kind: str) -> None:
    student, teacher = make_pipe(kind), make_pipe(kind, seed=1)
    head = make_head(student, teacher)
    examples = [*raw_examples(student), *unlabelled(student, [[]])]
    for records in (record(head, teacher, examples), record(head, teacher, examples[-1:])):
        assert records.keys() == head.fields.keys()
        for name, field in head.fields.items():
            assert field.per == "token"
            for example, array in zip(examples[-len(records[name]) :], records[name], strict=True):
                assert array.shape == (len(example.predicted), field.width)
                assert np.can_cast(array.dtype, field.dtype, "same_kind")
    assert head.record([]) == {"labels": [], "log_probs": []}


def test_normalized_or_not_the_teacher_says_the_same() -> None:
    student, teacher = make_pipe("tagger"), make_pipe("tagger", seed=1)
    head = make_head(student, teacher)
    examples = raw_examples(student)
    layer = output_layer(teacher.get_pipe("pipe").model)
    layer.attrs["softmax_temperature"] = 3.0
    logits = record(head, teacher, examples)
    layer.attrs["softmax_normalize"] = True
    probs = record(head, teacher, examples)
    for name in ("labels", "log_probs"):
        for left, right in zip(logits[name], probs[name], strict=True):
            np.testing.assert_allclose(left, right, rtol=2e-3, atol=1e-4)
    layer.attrs["softmax_temperature"] = 1.0
    sharper = record(head, teacher, examples)
    assert not np.allclose(sharper["log_probs"][0], probs["log_probs"][0], rtol=0, atol=0.1)


@pytest.mark.parametrize("normalize", [False, True])
def test_an_extreme_teacher_is_borne(normalize: bool) -> None:
    """In float32, and clipped to float16."""
    student, teacher = make_pipe("tagger"), make_pipe("tagger", seed=1)
    layer = output_layer(teacher.get_pipe("pipe").model)
    layer.set_param("W", layer.get_param("W") * 1e6)
    layer.attrs["softmax_normalize"] = normalize
    head = make_head(student, teacher, temperature=0.5)
    examples = raw_examples(student)
    records = record(head, teacher, examples)
    assert min(array.min() for array in records["log_probs"]) < -60
    assert all(np.isfinite(array).all() for array in records["log_probs"])
    largest = np.finfo(np.float16).max
    clipped = [array.clip(-largest, largest).astype("f2") for array in records["log_probs"]]
    for log_probs in (records["log_probs"], clipped):
        loss, grads = learn(head, examples, {**records, "log_probs": log_probs}, soft=1.0)
        assert np.isfinite(loss)
        assert all(np.isfinite(grad).all() for grad in grads.values())


# Learning


@ALL_KINDS
def test_a_sure_teacher_equals_gold(kind: str) -> None:
    """The gradients are compared, of which an optimizer would hide the scale."""
    plain, student, teacher = make_pipe(kind), make_pipe(kind), make_pipe(kind, seed=1)
    expected_loss = plain.get_pipe("pipe").update(gold_examples(plain))["pipe"]
    expected = gradients(plain.get_pipe("pipe").model)
    head = make_head(student, teacher)
    examples = gold_examples(student)
    loss, grads = learn(head, examples, sure_records(kind, head, examples), soft=1.0)
    assert same(grads, expected, atol=1e-4)
    assert norm(expected) > 1
    if kind == "distil_ner":  # the others report the squares of their gradient
        assert loss == pytest.approx(expected_loss, rel=1e-4)


@ALL_KINDS
def test_gold_alone_is_a_plain_update(kind: str) -> None:
    plain, student, teacher = make_pipe(kind), make_pipe(kind), make_pipe(kind, seed=1)
    losses = plain.get_pipe("pipe").update(gold_examples(plain))
    head, examples = make_head(student, teacher), gold_examples(student)
    loss, grads = learn(head, examples, record(head, teacher, examples), gold=1.0)
    assert loss == pytest.approx(losses["pipe"], rel=1e-5)
    assert same(grads, gradients(plain.get_pipe("pipe").model))


@ALL_KINDS
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(
    kind: str, temperature: float
) -> None:
    """But for what float16 rounds off."""
    student, same_weights, other = make_pipe(kind), make_pipe(kind), make_pipe(kind, seed=1)
    results = []
    for teacher in (same_weights, other):
        head = make_head(student, teacher, temperature=temperature)
        examples = raw_examples(student)
        records = stored(head, record(head, teacher, examples))
        results.append(learn(head, examples, records, soft=1.0))
    (loss, grads), (other_loss, other_grads) = results
    assert abs(loss) < 1e-4 < 1e-1 < other_loss
    assert norm(grads) < 2e-3 * norm(other_grads)


def test_dropout_reaches_the_pipe() -> None:
    config = {"model": {**TAGGER, "tok2vec": {**CNN, "depth": 2}}}
    student, teacher = make_pipe("tagger", config=config), make_pipe("tagger", seed=1)
    head, examples = make_head(student, teacher), raw_examples(student)
    records = record(head, teacher, examples)
    head.update(examples, records, soft=1.0, gold=0.0, drop=0.25, losses={})
    rates = [
        n.attrs["dropout_rate"] for n in head.student.model.walk() if "dropout_rate" in n.attrs
    ]
    assert rates
    assert set(rates) == {0.25}


@ALL_KINDS
def test_soft_and_gold_are_weighted_and_summed(kind: str) -> None:
    student, teacher = make_pipe(kind), make_pipe(kind, seed=1)
    head, examples = make_head(student, teacher, temperature=2.0), gold_examples(student)
    records = record(head, teacher, examples)
    soft_loss, soft = learn(head, examples, records, soft=1.0)
    gold_loss, gold = learn(head, examples, records, gold=1.0)
    heavy = make_head(student, teacher, temperature=2.0, weight=3.0)
    loss, mixed = learn(heavy, examples, records, soft=0.3, gold=0.7)
    expected = {name: 3 * (0.3 * soft[name] + 0.7 * gold[name]) for name in soft}
    assert loss == pytest.approx(3 * (0.3 * soft_loss + 0.7 * gold_loss), rel=1e-5)
    assert same(mixed, expected, atol=1e-4)
    assert norm({name: soft[name] - gold[name] for name in soft}) > 0.1


@ALL_KINDS
def test_soft_and_gold_with_weight_and_temperature_equal_autograd(kind: str) -> None:
    """The gradient of the last layer's bias, which is the sum of the logits' gradients."""
    student, teacher = make_pipe(kind), make_pipe(kind, seed=1)
    head = make_head(student, teacher, temperature=2.0, weight=3.0)
    examples = gold_examples(student)
    records = record(head, teacher, examples)
    docs = [example.predicted for example in examples]
    logits = torch.tensor(
        np.concatenate(head.student.model.predict(docs)), dtype=torch.float64, requires_grad=True
    )
    targets = torch.full_like(logits, -1e9)
    labels = torch.tensor(np.concatenate(records["labels"]).astype("int64"))
    targets.scatter_(1, labels, torch.tensor(np.concatenate(records["log_probs"])).double())
    soft_loss = 4 * torch.nn.functional.kl_div(
        (logits / 2).log_softmax(1), (targets / 2).softmax(1), reduction="sum"
    )
    gold = torch.tensor([i for each in examples for i in gold_labels(kind, head.student, each)])
    gold_loss = torch.nn.functional.cross_entropy(logits, gold, reduction="sum")
    (3 * (0.3 * soft_loss + 0.7 * gold_loss)).backward()
    head.update(examples, records, soft=0.3, gold=0.7, drop=0.0, losses={})
    assert logits.grad is not None
    found = output_layer(head.student.model).get_grad("b")
    np.testing.assert_allclose(found, logits.grad.sum(dim=0), rtol=1e-3, atol=1e-4)


@ALL_KINDS
def test_docs_without_annotation_have_no_gold(kind: str) -> None:
    student, teacher = make_pipe(kind), make_pipe(kind, seed=1)
    head = make_head(student, teacher)
    raw, annotated = raw_examples(student), gold_examples(student, 3)
    # Annotation of other kinds is none.
    for example in raw:
        example.reference.cats = {"travel": 1.0}
    _, soft = learn(head, raw, record(head, teacher, raw), soft=1.0)
    _, both = learn(head, raw, record(head, teacher, raw), soft=1.0, gold=1.0)
    assert same(both, soft)
    loss, nothing = learn(head, raw, record(head, teacher, raw), gold=1.0)
    assert loss == 0
    assert norm(nothing) == 0
    mixed = [raw[0], annotated[0], raw[1], annotated[1], annotated[2], raw[2]]
    loss, grads = learn(head, mixed, record(head, teacher, mixed), gold=1.0)
    expected_loss, expected = learn(head, annotated, record(head, teacher, annotated), gold=1.0)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert same(grads, expected, atol=1e-5)


@ALL_KINDS
def test_docs_without_tokens(kind: str) -> None:
    student, teacher = make_pipe(kind), make_pipe(kind, seed=1)
    head, filled = make_head(student, teacher), gold_examples(student, 2)
    empty = unlabelled(student, [[], []])
    assert learn(head, empty, record(head, teacher, empty), soft=1.0, gold=1.0) == (0.0, {})
    loss, expected = learn(head, filled, record(head, teacher, filled), soft=1.0, gold=1.0)
    mixed = [empty[0], *filled, empty[1]]
    mixed_loss, grads = learn(head, mixed, record(head, teacher, mixed), soft=1.0, gold=1.0)
    assert mixed_loss == pytest.approx(loss, rel=1e-5)
    assert same(grads, expected, atol=1e-5)


def test_with_the_shared_encoder_one_step_equals_nlp_update(bert_dir: Path) -> None:
    """The encoder's share arrives through the listeners."""
    pipes = ("tagger", "morphologizer")
    plain, student, teacher = (make_nlp(bert_dir, pipes) for _ in range(3))
    before = weights_of(student)
    plain.update(make_examples(plain), sgd=False)
    examples = make_examples(student)
    student.get_pipe("transformer").update(examples)
    for kind in pipes:
        head = SoftmaxHead(student.get_pipe(kind), teacher.get_pipe(kind), PipeSettings())
        records = sure_records(kind, head, examples)
        head.update(examples, records, soft=1.0, gold=0.0, drop=0.0, losses={})
    expected, found = (
        {
            name: p.grad.numpy().copy()
            for name, p in torch_model_of(nlp).named_parameters()
            if p.grad is not None
        }
        for nlp in (plain, student)
    )
    assert same(found, expected, atol=1e-4)
    assert norm(expected) > 1
    for nlp in (plain, student):
        optimizer = adam()
        for _, pipe in nlp.pipeline:
            pipe.finish_update(optimizer)
    assert same(weights_of(student), weights_of(plain), atol=1e-5)
    assert not same(weights_of(student), before, atol=1e-4)
    for kind in pipes:
        assert same(*(parameters(nlp.get_pipe(kind).model) for nlp in (student, plain)), atol=1e-5)


@ALL_KINDS
def test_without_a_teacher_annotation_alone_is_learned(kind: str) -> None:
    plain, student = make_pipe(kind), make_pipe(kind)
    plain.get_pipe("pipe").update(gold_examples(plain))
    head = SoftmaxHead(student.get_pipe("pipe"), None, PipeSettings())
    assert head.fields == {}
    _, grads = learn(head, gold_examples(student), {}, gold=1.0)
    assert same(grads, gradients(plain.get_pipe("pipe").model))


def test_the_source_depends_on_the_teachers_pipe_and_the_students_labels() -> None:
    teacher = make_pipe("tagger", seed=1, tags=MANY_TAGS)

    def source(tags: Sequence[str], **settings: Any) -> str:
        return make_head(make_pipe("tagger", tags=tags), teacher, **settings).source

    first = source(MANY_TAGS, teacher="a")
    assert first == source(MANY_TAGS, teacher="a", temperature=2.0, weight=0.5)
    assert first != source(MANY_TAGS, teacher="b")
    assert first != source(MANY_TAGS[::-1], teacher="a")
    assert source(MANY_TAGS) == source(MANY_TAGS, teacher="pipe")


# Errors


def test_other_labels_are_refused() -> None:
    with pytest.raises(ConfigError, match="Only the teacher: X0"):
        make_head(make_pipe("tagger"), make_pipe("tagger", tags=["X0"]))
    with pytest.raises(ConfigError, match="Only the teacher: X0"):
        make_head(make_pipe("distil_ner"), make_pipe("distil_ner", tags=["X0"]))


def test_other_edit_trees_are_refused() -> None:
    student, teacher = make_pipe("trainable_lemmatizer"), spacy.blank("xx")
    other: Any = teacher.add_pipe(
        "trainable_lemmatizer", name="pipe", config={"model": TAGGER, "min_tree_freq": 1}
    )
    teacher.initialize(lambda: gold_examples(teacher, 1))
    assert 0 < len(other.labels) < len(student.get_pipe("pipe").labels)
    with pytest.raises(ConfigError, match="different edit trees for 'pipe'"):
        make_head(student, teacher)


def test_edit_trees_that_training_adds_do_not_matter() -> None:
    student, teacher = (make_pipe("trainable_lemmatizer") for _ in range(2))
    trees = student.get_pipe("pipe").trees
    before = len(trees)
    trees.add("went", "go")
    assert len(trees) > before
    make_head(student, teacher)


def test_annotation_that_the_teacher_does_not_know_is_named() -> None:
    head = make_head(make_pipe("tagger"), make_pipe("tagger", seed=1))
    doc = Doc(head.student.vocab, words=["a"])
    example = Example.from_dict(doc, {"tags": ["NEW"]})
    with pytest.raises(ConfigError, match="'pipe' has the label 'NEW'"):
        head.update([example], {}, soft=0.0, gold=1.0, drop=0.0, losses={})


def test_a_model_without_softmax_is_refused() -> None:
    teacher = make_pipe("tagger")
    pipe: Any = teacher.get_pipe("pipe")
    model = chain(pipe.model.get_ref("tok2vec"), with_array(Linear(len(pipe.labels), 16)))
    student = Tagger(teacher.vocab, model, "tags")
    with pytest.raises(ConfigError, match="student's 'tags' ends in a layer 'linear'"):
        SoftmaxHead(student, pipe, PipeSettings())


def test_a_student_that_diverged_is_reported() -> None:
    student, teacher = make_pipe("tagger"), make_pipe("tagger", seed=1)
    head, examples = make_head(student, teacher), raw_examples(student)
    records = record(head, teacher, examples)
    layer = output_layer(head.student.model)
    layer.set_param("W", layer.get_param("W") * np.nan)
    with pytest.raises(ValueError, match="E910"):
        learn(head, examples, records, soft=1.0)
