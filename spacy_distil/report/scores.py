"""Scores of one pipeline on annotated documents, with the counts of each document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.scorer import MISSING_VALUES
from spacy.training import Example

from spacy_distil.pipelines import count_bytes, load_pipeline
from spacy_distil.report.bootstrap import Counts, Floats, Metric
from spacy_distil.report.predictions import (
    Predictions,
    align_entities,
    best_category,
    read_references,
)
from spacy_distil.report.process import Worker
from spacy_distil.report.reliability.judged import Judged
from spacy_distil.report.worker import evaluate, find_categories
from spacy_distil.text.documents import read_examples

# The totals below are of shape (..., 3): true positives, false positives, false negatives.


def precision(totals: Floats) -> Floats:
    """Compute precision. totals: shape (..., 3). RETURNS: shape (...)."""
    predicted = totals[..., 0] + totals[..., 1]
    return np.divide(totals[..., 0], predicted, out=np.zeros(predicted.shape), where=predicted > 0)


def recall(totals: Floats) -> Floats:
    """Compute recall. totals: shape (..., 3). RETURNS: shape (...)."""
    expected = totals[..., 0] + totals[..., 2]
    return np.divide(totals[..., 0], expected, out=np.zeros(expected.shape), where=expected > 0)


def f_score(totals: Floats) -> Floats:
    """Compute F1. totals: shape (..., 3). RETURNS: shape (...)."""
    size = 2 * totals[..., 0] + totals[..., 1] + totals[..., 2]
    return np.divide(2 * totals[..., 0], size, out=np.zeros(size.shape), where=size > 0)


def macro_f_score(totals: Floats) -> Floats:
    """Compute the plain mean of the labels' F1. totals: (..., n_labels, 3). RETURNS: (...)."""
    scores: Floats = f_score(totals).mean(axis=-1)
    return scores


@dataclass(frozen=True)
class Column:
    """A score in the tables.

    key: name in spaCy's scores.
    title: heading of the column.
    counts: key of the counts in `Scores.counts` that the score is computed from.
    metric: computes the score from totals of those counts.
    is_task: whether the score stands for its task in the retention table and in the plot.
    decimals: decimals of the percentage: two for tokens, which are many, one for the rest.
    """

    key: str
    title: str
    counts: str
    metric: Metric
    is_task: bool = True
    decimals: int = 1


COLUMNS: tuple[Column, ...] = (
    Column("pos_acc", "UPOS acc", "pos", f_score, decimals=2),
    Column("tag_acc", "XPOS acc", "tag", f_score, decimals=2),
    Column("ents_p", "NER P", "ents", precision, is_task=False),
    Column("ents_r", "NER R", "ents", recall, is_task=False),
    Column("ents_f", "NER F", "ents", f_score),
    Column("cats_macro_f", "textcat macro-F", "cats", macro_f_score),
)


@dataclass(frozen=True)
class TaskScores:
    """Scores of one pipeline.

    values: `Column.key` to score (0 to 1), for the annotations that both the pipeline and the gold
        have.
    counts: true positives, false positives and false negatives by document: "pos", "tag" and "ents"
        to shape (n_docs, 3), "cats" to (n_docs, n_labels, 3).
    """

    values: dict[str, float]
    counts: dict[str, Counts]


@dataclass(frozen=True)
class Scores(TaskScores):
    """Scores and size of one pipeline.

    full: all scores of spaCy's scorer.
    n_parameters: number of weights.
    n_bytes: size on disk.
    n_docs, n_words: size of the test set, in documents and spaCy tokens.
    """

    full: dict[str, Any]
    n_parameters: int
    n_bytes: int
    n_docs: int
    n_words: int


def score_pipeline(pipeline: str, gold: Path, *, batch_size: int = 256, limit: int = 0) -> Scores:
    """Load a pipeline and score it with spaCy's scorer, on the device that it picks.

    pipeline: path or package name.
    gold, limit: see `read_examples`.
    batch_size: documents per batch.
    """
    nlp = load_pipeline(pipeline)
    return score_and_predict(nlp, gold, batch_size=batch_size, limit=limit)[0]


def score_and_predict(
    nlp: Language, gold: Path, *, batch_size: int = 256, limit: int = 0
) -> tuple[Scores, Predictions]:
    """Score a loaded pipeline as `score_pipeline` does, and keep its predictions."""
    examples = read_examples(nlp, gold, limit=limit)
    full, examples = evaluate(nlp, examples, batch_size=batch_size)
    # It includes the creation of the docs, on any device. The speed table has a better number.
    full.pop("speed")
    categories = find_categories(nlp)
    scores = Scores(
        **vars(_score_tasks(examples, full, categories)),
        full=full,
        n_parameters=count_parameters(nlp),
        n_bytes=count_bytes(nlp.path),
        n_docs=len(examples),
        n_words=sum(len(example.predicted) for example in examples),
    )
    return scores, Predictions.of(examples, categories)


def score_examples(nlp: Language, examples: Sequence[Example], *, batch_size: int) -> TaskScores:
    """Score a loaded pipeline on examples with spaCy's scorer. batch_size: documents per batch."""
    full, examples = evaluate(nlp, examples, batch_size=batch_size)
    return _score_tasks(examples, full, find_categories(nlp))


def score_in_worker(
    worker: Worker, gold: Path, *, batch_size: int, limit: int = 0
) -> tuple[TaskScores, Predictions]:
    """Score the pipeline of a worker with spaCy's scorer, on the CPU, and keep its predictions.

    For the rest see `score_pipeline`.
    """
    with TemporaryDirectory() as directory:
        file = Path(directory) / "predictions.spacy"
        reply = worker.score(gold, file, batch_size=batch_size, limit=limit)
        predictions = Predictions(file.read_bytes(), reply["categories"])
    examples = list(predictions.examples(read_references(gold, limit=limit)))
    return _score_tasks(examples, reply["scores"], reply["categories"]), predictions


def judge_in_worker(
    worker: Worker, gold: Path, *, batch_size: int, limit: int = 0
) -> dict[str, Judged]:
    """Judge the predictions of the pipeline of a worker, see `collecting.judge`."""
    with TemporaryDirectory() as directory:
        files = worker.judge(gold, Path(directory), batch_size=batch_size, limit=limit)
        return {name: Judged.load(Path(file)) for name, file in files.items()}


def _score_tasks(
    examples: Sequence[Example], full: Mapping[str, Any], categories: dict[str, Any] | None
) -> TaskScores:
    """Select the scores that the examples have gold for, and count by document.

    full: of spaCy's scorer. categories: as by `find_categories`.
    """
    counts = count_documents(examples, categories)
    values = {
        column.key: full[column.key]
        for column in COLUMNS
        if full.get(column.key) is not None and has_gold(examples, column.counts)
    }
    return TaskScores(
        values=values,
        counts={name: array for name, array in counts.items() if _agrees(name, array, values)},
    )


def has_gold(examples: Sequence[Example], counts: str) -> bool:
    """Whether the gold has annotations for a score; spaCy's scorer gives 0 for missing categories.

    counts: see `Column`.
    """
    return counts != "cats" or any(example.reference.cats for example in examples)


def _agrees(name: str, counts: Counts, values: dict[str, float]) -> bool:
    """Whether the counts of the documents add up to spaCy's scores.

    They do not if a pipe has a scorer of its own. Its score then has no interval.
    """
    columns = [column for column in COLUMNS if column.counts == name and column.key in values]
    totals = counts.sum(axis=0).astype(np.float64)
    return all(abs(float(c.metric(totals)) - values[c.key]) < 1e-6 for c in columns)


def count_documents(
    examples: Sequence[Example], categories: dict[str, Any] | None
) -> dict[str, Counts]:
    """Count true positives, false positives and false negatives by document, by spaCy's rules.

    categories: as by `find_categories`.
    RETURNS: "pos", "tag" and "ents" to shape (n_docs, 3), and "cats" to (n_docs, n_labels, 3) if
        the pipeline has a text categorizer.
    """
    counts = {
        "pos": np.array([_count_attribute(example, "pos") for example in examples]),
        "tag": np.array([_count_attribute(example, "tag") for example in examples]),
        "ents": np.array([_count_entities(example) for example in examples]),
    }
    if categories is not None:
        count = _category_counter(**categories)
        counts["cats"] = np.array([count(example) for example in examples])
    return counts


def _count_attribute(example: Example, attribute: str) -> tuple[int, int, int]:
    """Count as `Scorer.score_token_attr`: a token counts if it aligns with one gold token."""
    gold = {
        (token.i, value)
        for token in example.reference
        if (value := getattr(token, attribute)) not in MISSING_VALUES
    }
    annotated = {i for i, _ in gold}
    x2y = example.alignment.x2y
    predicted = {
        (i, getattr(token, attribute))
        for token in example.predicted
        if not token.orth_.isspace()
        and x2y.lengths[token.i] == 1
        and (i := int(x2y[token.i][0])) in annotated
    }
    return len(predicted & gold), len(predicted - gold), len(gold - predicted)


def _count_entities(example: Example) -> tuple[int, int, int]:
    """Count as `get_ner_prf`: an entity over tokens without annotation does not count."""
    if not example.reference.has_annotation("ENT_IOB"):
        return 0, 0, 0
    gold = {(ent.label_, ent.start, ent.end) for ent in example.reference.ents}
    hits = alarms = 0
    for entity in align_entities(example):
        if entity in gold:
            gold.remove(entity)
            hits += 1
        else:
            alarms += 1
    return hits, alarms, len(gold)


def _category_counter(
    labels: Sequence[str], threshold: float | None
) -> Callable[[Example], Counts]:
    """Count as `Scorer.score_cats`: the best of exclusive labels, otherwise by a threshold."""
    if threshold is None:
        return lambda example: _count_category(example, labels)
    return lambda example: _count_categories(example, labels, threshold)


def _count_categories(example: Example, labels: Sequence[str], threshold: float) -> Counts:
    counts = np.zeros((len(labels), 3), dtype=np.int64)
    for i, label in enumerate(labels):
        gold = example.reference.cats.get(label)
        if gold is None:
            continue
        assigned = example.predicted.cats.get(label, 0.0) >= threshold
        counts[i] = assigned and gold > 0, assigned and gold == 0, not assigned and gold > 0
    return counts


def _count_category(example: Example, labels: Sequence[str]) -> Counts:
    counts = np.zeros((len(labels), 3), dtype=np.int64)
    gold, predicted = (
        best_category(doc.cats, labels) for doc in (example.reference, example.predicted)
    )
    if gold is not None and gold == predicted:
        counts[labels.index(gold), 0] += 1
        return counts
    if predicted is not None:
        counts[labels.index(predicted), 1] += 1
    if gold is not None:
        counts[labels.index(gold), 2] += 1
    return counts


def count_parameters(nlp: Language) -> int:
    """Count the weights of all pipes: thinc's parameters, and those in the shims of its models.

    Shims count by their `n_parameters`, thinc's PyTorchShim by the parameters of its torch module.
    Static vectors do not count: they are a table of the vocab.
    """
    nodes = {
        id(node): node
        for _, pipe in nlp.pipeline
        if hasattr(pipe, "model") and hasattr(pipe.model, "walk")
        for node in pipe.model.walk()
    }
    shims = {id(shim): shim for node in nodes.values() for shim in node.shims}
    own = sum(
        node.get_param(name).size
        for node in nodes.values()
        for name in node.param_names
        if node.has_param(name)
    )
    return int(own) + sum(_count_shim(shim) for shim in shims.values())


def _count_shim(shim: Any) -> int:
    count = getattr(shim, "n_parameters", None)
    if isinstance(count, int):
        return count
    module = getattr(shim, "_model", None)
    if module is None or not hasattr(module, "parameters"):
        return 0
    return sum(parameter.numel() for parameter in module.parameters())
