"""A step of the distiller, and the batches of the loop. `test_run` has whole runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spacy.language import Language
from spacy.training import Example
from spacy.training.batchers import minibatch_by_words
from thinc.api import fix_random_seed

from spacy_distil.component.shim import get_encoder
from spacy_distil.distillation.pipeline.cache import open_cache
from spacy_distil.distillation.pipeline.config import PipelineStage, load_config
from spacy_distil.distillation.pipeline.corpus import TransferExample, TransferSet
from spacy_distil.distillation.pipeline.distiller import PipelineDistiller
from spacy_distil.distillation.pipeline.heads import plan_heads
from spacy_distil.distillation.pipeline.heads.base import Array
from spacy_distil.distillation.pipeline.loop import make_batches
from spacy_distil.errors import CorpusError
from spacy_distil.ner.schemes import tag_names
from spacy_distil.text.docs import same_tokens
from tests.distillation.pipeline.util import annotated_examples, build_pipeline, train_pipeline
from tests.util import adam

SOFTMAX_PIPES = ("tagger", "morphologizer", "senter", "distil_ner", "textcat")


def make_stage(*, hidden: float = 0.0, soft: float = 0.0, gold: float = 0.0) -> PipelineStage:
    return PipelineStage("only", 0, 1, hidden, 0.0, soft, gold)


def make_pair(bert_dir: Path) -> tuple[Language, Language]:
    """Two students with the same weights, and optimizers that remember nothing."""
    data = train_pipeline(bert_dir, SOFTMAX_PIPES, steps=2).to_bytes()
    first, second = (build_pipeline(bert_dir, SOFTMAX_PIPES) for _ in range(2))
    return first.from_bytes(data), second.from_bytes(data)


def parameters(nlp: Language) -> dict[str, np.ndarray]:
    """Of all heads, and of the encoder."""
    found = {
        f"{name} {i} {parameter}": node.get_param(parameter).copy()
        for name, pipe in nlp.pipeline
        for i, node in enumerate(pipe.model.walk())
        for parameter in node.param_names
    }
    encoder = get_encoder(nlp.get_pipe("transformer").model)
    module = encoder.engine.model  # type: ignore[attr-defined]
    return {**found, **{name: p.detach().numpy().copy() for name, p in module.named_parameters()}}


def one_hot(nlp: Language, examples: Sequence[Example]) -> dict[str, dict[str, list[Array]]]:
    """The records of a teacher that is sure of the annotation."""
    records: dict[str, dict[str, list[Array]]] = {}
    for name in SOFTMAX_PIPES:
        pipe: Any = nlp.get_pipe(name)
        if name == "textcat":
            scores = [
                np.array([[0.0 if eg.y.cats[label] else -1e4 for label in pipe.labels]], "f")
                for eg in examples
            ]
            records[name] = {"scores": scores}
            continue
        labels = tag_names(pipe.labels) if name == "distil_ner" else list(pipe.labels)
        number = {normal(label): i for i, label in enumerate(labels)}
        width = min(len(labels), 16)
        numbers, log_probs = [], []
        for eg in examples:
            gold = gold_labels(name, eg)
            own = np.array([number[normal(label)] for label in gold])
            # The gold label first; whatever comes then has no probability.
            others = (own[:, None] + np.arange(width)) % len(labels)
            numbers.append(others.astype("int16"))
            log_probs.append(np.where(np.arange(width) == 0, 0.0, -1e4 + 0 * others).astype("f2"))
        records[name] = {"labels": numbers, "log_probs": log_probs}
    return records


def gold_labels(name: str, example: Example) -> list[str]:
    doc = example.reference
    if name == "tagger":
        return [token.tag_ for token in doc]
    if name == "senter":
        return ["S" if token.is_sent_start else "I" for token in doc]
    if name == "distil_ner":
        return [str(tag) for tag in example.get_aligned_ner()]
    return [
        "|".join(part for part in (str(token.morph), f"POS={token.pos_}") if part) for token in doc
    ]


def normal(label: str) -> str:
    """The features of a morphologizer's label in one order, whatever its own is."""
    return "|".join(sorted(label.split("|")))


def test_sure_teachers_equal_plain_training_on_their_annotation(
    bert_dir: Path, tmp_path: Path
) -> None:
    """Temperature 1, one-hot teachers, one stage: `nlp.update` on that gold."""
    plain, student = make_pair(bert_dir)
    examples = annotated_examples(student, 8)
    plan = plan_heads(student, plain, {})
    assert list(plan.heads) == list(SOFTMAX_PIPES)
    records = one_hot(student, examples)
    cache = open_cache(
        tmp_path / "cache",
        fingerprint={"the teacher": "x"},
        fields={name: head.fields for name, head in plan.heads.items()},
        lengths=[len(eg.predicted) for eg in examples],
        record=lambda numbers: {
            name: {field: [arrays[i] for i in numbers] for field, arrays in fields.items()}
            for name, fields in records.items()
        },
    )
    distiller = PipelineDistiller(student, plan.heads, plan.gold, cache=cache)
    batch = [TransferExample(i, eg) for i, eg in enumerate(examples)]
    optimizers = adam(1e-2), adam(1e-2)
    for step in range(3):
        fix_random_seed(step)
        annotated = [
            Example(same_tokens(eg.predicted, plain.vocab), eg.reference) for eg in examples
        ]
        plain.update(annotated, sgd=False, drop=0.1)
        for _, pipe in plain.pipeline:
            pipe.finish_update(optimizers[0])
        fix_random_seed(step)
        losses = distiller.update(batch, make_stage(soft=1.0), drop=0.1)
        distiller.finish_update(optimizers[1])
        assert all(losses[name] > 0 for name in SOFTMAX_PIPES)
    expected, got = parameters(plain), parameters(student)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, atol=2e-5, err_msg=name)


def test_gold_alone_is_plain_training(bert_dir: Path) -> None:
    plain, student = make_pair(bert_dir)
    examples = annotated_examples(student, 8)
    plan = plan_heads(student, plain, {})
    distiller = PipelineDistiller(student, plan.heads, plan.gold)
    fix_random_seed(0)
    annotated = [Example(same_tokens(eg.predicted, plain.vocab), eg.reference) for eg in examples]
    plain.update(annotated, sgd=False, drop=0.1)
    optimizer = adam(1e-2)
    for _, pipe in plain.pipeline:
        pipe.finish_update(optimizer)
    fix_random_seed(0)
    batch = [TransferExample(i, eg) for i, eg in enumerate(examples)]
    distiller.update(batch, make_stage(gold=1.0), drop=0.1)
    distiller.finish_update(adam(1e-2))
    expected, got = parameters(plain), parameters(student)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, atol=1e-6, err_msg=name)


def test_frozen_pipes_stay_and_annotating_ones_annotate(bert_dir: Path) -> None:
    student, _ = make_pair(bert_dir)
    examples = annotated_examples(student, 4)
    distiller = PipelineDistiller(
        student, {}, {}, frozen=["tagger", "transformer"], annotating=["transformer"]
    )
    before = parameters(student)
    distiller.update(
        [TransferExample(i, eg) for i, eg in enumerate(examples)], make_stage(gold=1.0)
    )
    distiller.finish_update(adam(1e-2))
    after = parameters(student)
    changed = {name.split()[0] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"senter", "morphologizer", "distil_ner", "textcat"}
    assert all(not eg.predicted.has_annotation("SENT_START") for eg in examples)


def make_transfer_set(n_gold: int, n_text: int) -> TransferSet:
    import spacy

    nlp = spacy.blank("en")
    docs = [nlp.make_doc("a b c d e " * (1 + i % 3)) for i in range(n_gold + n_text)]
    examples = [TransferExample(i, Example(doc, doc.copy())) for i, doc in enumerate(docs)]
    return TransferSet(examples, n_gold)


def make_config(tmp_path: Path, **shares: float) -> Any:
    path = tmp_path / "student.cfg"
    from spacy_distil.cli.configs import pipeline_config

    path.write_text(pipeline_config())
    overrides = {f"distillation.stages.{name}.share": share for name, share in shares.items()}
    return load_config(path, {"training.max_steps": 40, **overrides})


def batcher(examples: Any) -> Any:
    return minibatch_by_words(examples, size=40, tolerance=0.2)


def test_batches_are_of_the_stage(tmp_path: Path) -> None:
    transfer_set = make_transfer_set(6, 20)
    config = make_config(tmp_path, hidden=0.25, soft=0.5, gold=0.25)
    batches = list(make_batches(transfer_set, config, batcher, seed=0))
    assert len(batches) == 41  # as `spacy train` counts
    gold_stage = [one.number for _, batch in batches[30:] for one in batch]
    assert set(gold_stage) == set(range(6))
    assert {one.number for _, batch in batches[:30] for one in batch} == set(range(26))
    epochs = [epoch for epoch, _ in batches]
    assert epochs == sorted(epochs)
    again = list(make_batches(transfer_set, config, batcher, seed=0))
    other = list(make_batches(transfer_set, config, batcher, seed=1))
    numbers = [[[one.number for one in b] for _, b in run] for run in (batches, again, other)]
    assert numbers[0] == numbers[1] != numbers[2]


def test_one_pass_has_every_document_once(tmp_path: Path) -> None:
    transfer_set = make_transfer_set(5, 30)
    config = make_config(tmp_path, hidden=0.0, soft=1.0, gold=0.0)
    first = [
        one.number
        for epoch, b in make_batches(transfer_set, config, batcher, 3)
        if not epoch
        for one in b
    ]
    assert sorted(first) == list(range(35))
    assert first != sorted(first)


def test_a_batcher_that_drops_everything_is_an_error(tmp_path: Path) -> None:
    def drop_all(examples: Any) -> Any:
        return minibatch_by_words(examples, size=2, tolerance=0.0, discard_oversize=True)

    config = make_config(tmp_path)
    with pytest.raises(CorpusError, match="discard_oversize"):
        list(make_batches(make_transfer_set(3, 0), config, drop_all, 0))
