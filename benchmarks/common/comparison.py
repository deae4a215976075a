"""Scores of pipelines on the same test documents, and their differences.

A difference is taken between two means over seeds. Its interval comes from a paired bootstrap over
documents.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean

import numpy as np
from wasabi import msg
from weasel.util import get_checksum

from spacy_distil.report import bootstrap
from spacy_distil.report.bootstrap import Counts, Floats, Interval
from spacy_distil.report.means import MeanScore
from spacy_distil.report.results import Retention
from spacy_distil.report.scores import COLUMNS, Column, Scores, score_pipeline
from spacy_distil.runs.files import write_text

# Increase it whenever the same files would get other scores or counts: saved scores then expire.
SCORING_VERSION = 1


def accuracy(totals: Floats) -> Floats:
    """Compute the accuracy of labels that exclude each other.

    totals: hits, false positives and misses, (..., n_labels, 3).
    RETURNS: (...).
    """
    hits, gold = totals[..., 0].sum(-1), (totals[..., 0] + totals[..., 2]).sum(-1)
    return np.divide(hits, gold, out=np.zeros(gold.shape), where=gold > 0)


# If each document has one label and is given one, micro-averaged recall is accuracy.
ACCURACY = Column("cats_micro_r", "textcat acc", "cats", accuracy, decimals=2)
TASKS = (*(column for column in COLUMNS if column.is_task), ACCURACY)


@dataclass(frozen=True)
class ScoredRow:
    """The pipelines of a row, one per seed: a teacher, or students of one recipe.

    pipelines, scores: path and scores of each seed.
    teacher: name of the teacher's row; empty for a teacher.
    before: names of the rows to compare with.
    """

    name: str
    title: str
    pipelines: list[str]
    scores: list[Scores]
    teacher: str = ""
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """Difference of the mean scores of two rows, as a share: 0.01 is one point."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class RowGain:
    """Gain of a row over a row before it, by `Column.key`."""

    row: str
    before: str
    differences: dict[str, Difference]


@dataclass(frozen=True)
class ComparedRow:
    """A row with its scores, and compared with its teacher, each by `Column.key`."""

    name: str
    title: str
    teacher: str
    pipelines: list[str]
    scores: dict[str, MeanScore]
    retention: dict[str, Retention]
    to_teacher: dict[str, Difference]
    n_parameters: int


def score_once(pipeline: Path, test: Path, cache: Path) -> Scores:
    """Score a pipeline, or read its scores from `cache` if they belong to the same files and the
    same way of scoring.
    """
    source = {
        "version": SCORING_VERSION,
        "fields": [field.name for field in fields(Scores)],
        "pipeline": get_checksum(pipeline),
        "test": get_checksum(test),
    }
    if cache.is_file():
        saved = json.loads(cache.read_text(encoding="utf8"))
        if saved["source"] == source:
            fields_of_scores = saved["scores"]
            counts = fields_of_scores.pop("counts")
            arrays = {name: np.array(rows, np.int64) for name, rows in counts.items()}
            return Scores(**fields_of_scores, counts=arrays)
    msg.text(f"Scoring {pipeline}")
    scores = score_pipeline(str(pipeline), test)
    counts = {name: array.tolist() for name, array in scores.counts.items()}
    text = json.dumps({"source": source, "scores": {**vars(scores), "counts": counts}})
    write_text(cache, text + "\n")
    return scores


def has_score(column: Column, row: ScoredRow) -> bool:
    """Whether all seeds have a score that can be resampled."""
    return all(
        column.counts in one.counts
        and (is_exclusive(one.counts["cats"]) if column is ACCURACY else column.key in one.values)
        for one in row.scores
    )


def is_exclusive(counts: Counts) -> bool:
    """Whether each document has at most one label and was given as many.

    counts: hits, false positives and misses, (n_docs, n_labels, 3).
    """
    hits, alarms, misses = np.moveaxis(counts.sum(axis=1), -1, 0)
    return bool(np.all(hits + misses <= 1) and np.array_equal(alarms, misses))


def seed_scores(column: Column, row: ScoredRow) -> list[float]:
    """The score of each seed, from spaCy's scorer."""
    return [one.full[column.key] for one in row.scores]


def bootstrap_samples(column: Column, row: ScoredRow) -> Floats:
    """Resample the mean over seeds. All rows with the same test set draw the same documents.

    RETURNS: (resamples,).
    """
    samples = [bootstrap.resample(column.metric, one.counts[column.counts]) for one in row.scores]
    averaged: Floats = np.mean(samples, axis=0)
    return averaged


def compare(rows: Sequence[ScoredRow]) -> tuple[list[ComparedRow], list[RowGain]]:
    """Compare every row with its teacher and with the rows before it."""
    by_name = {row.name: row for row in rows}
    samples = {
        (row.name, column.key): bootstrap_samples(column, row)
        for row in rows
        for column in TASKS
        if has_score(column, row)
    }

    def scored_columns(*both: ScoredRow) -> list[Column]:
        return [c for c in TASKS if all((row.name, c.key) in samples for row in both)]

    def differ(one: ScoredRow, other: ScoredRow) -> dict[str, Difference]:
        return {
            column.key: Difference(
                mean(seed_scores(column, one)) - mean(seed_scores(column, other)),
                bootstrap.percentiles(
                    samples[one.name, column.key] - samples[other.name, column.key]
                ),
            )
            for column in scored_columns(one, other)
        }

    def retain(student: ScoredRow, teacher: ScoredRow) -> dict[str, Retention]:
        return {
            column.key: Retention(
                mean(seed_scores(column, student)) / mean(seed_scores(column, teacher)),
                bootstrap.percentiles(
                    samples[student.name, column.key] / samples[teacher.name, column.key]
                ),
            )
            for column in scored_columns(student, teacher)
            if samples[teacher.name, column.key].all()
        }

    def summarize(row: ScoredRow, column: Column) -> MeanScore:
        return MeanScore.of(seed_scores(column, row), samples[row.name, column.key])

    compared, gains = [], []
    for row in rows:
        teacher = by_name.get(row.teacher)
        compared.append(
            ComparedRow(
                name=row.name,
                title=row.title,
                teacher=row.teacher,
                pipelines=row.pipelines,
                scores={column.key: summarize(row, column) for column in scored_columns(row)},
                retention={} if teacher is None else retain(row, teacher),
                to_teacher={} if teacher is None else differ(row, teacher),
                n_parameters=row.scores[0].n_parameters,
            )
        )
        gains += [
            RowGain(row.name, name, differ(row, by_name[name]))
            for name in row.before
            if name in by_name
        ]
    return compared, gains
