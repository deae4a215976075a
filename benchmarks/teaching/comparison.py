"""Pipelines on the same test documents: their scores, and how far they are from one another.

A difference is that of two means over seeds, and its interval a paired bootstrap over documents.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from wasabi import msg
from weasel.util import get_checksum

from spacy_distil.report import bootstrap
from spacy_distil.report.bootstrap import Counts, Floats, Interval
from spacy_distil.report.results import MeanScore, Retention
from spacy_distil.report.scores import COLUMNS, Column, Scores, score_pipeline

# Of what scoring gives: one more whenever the same files would get other scores or counts.
SCORING_VERSION = 1


def accuracy(totals: Floats) -> Floats:
    """Of labels that exclude each other. totals: shape (..., n_labels, 3). To (...)."""
    hits, gold = totals[..., 0].sum(-1), (totals[..., 0] + totals[..., 2]).sum(-1)
    return np.divide(hits, gold, out=np.zeros(gold.shape), where=gold > 0)


# Where each document has one label and is given one, micro-averaged recall is accuracy.
ACCURACY = Column("cats_micro_r", "textcat acc", "cats", accuracy, decimals=2)
TASKS = (*(column for column in COLUMNS if column.is_task), ACCURACY)


@dataclass(frozen=True)
class Subject:
    """A row of the table: the teacher, or a recipe.

    pipelines: paths of the seeds, and scores of each.
    teacher: name of the subject that it is a student of; empty for a teacher.
    before: names of those that it is compared with.
    """

    name: str
    title: str
    pipelines: list[str]
    scores: list[Scores]
    teacher: str = ""
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """Mean score of one subject less that of another (points as shares, 0.01 is one point)."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Step:
    """What a row has that another has not gave so much, by `Column.key`."""

    row: str
    before: str
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Line:
    """A subject with all that is said about it, each by `Column.key`."""

    name: str
    title: str
    teacher: str
    pipelines: list[str]
    scores: dict[str, MeanScore]
    retention: dict[str, Retention]
    to_teacher: dict[str, Difference]
    n_parameters: int


def score_once(pipeline: Path, test: Path, cache: Path) -> Scores:
    """The scores of a pipeline, from `cache` where they are those of these very files, made by the
    scoring that would be done now."""
    source = {
        "version": SCORING_VERSION,
        "fields": [field.name for field in fields(Scores)],
        "pipeline": get_checksum(pipeline),
        "test": get_checksum(test),
    }
    if cache.is_file():
        kept = json.loads(cache.read_text(encoding="utf8"))
        if kept["source"] == source:
            values = kept["scores"]
            values["counts"] = {k: np.array(v, np.int64) for k, v in values["counts"].items()}
            return Scores(**values)
    msg.text(f"Scoring {pipeline}")
    scores = score_pipeline(str(pipeline), test)
    counts = {name: array.tolist() for name, array in scores.counts.items()}
    cache.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"source": source, "scores": {**vars(scores), "counts": counts}})
    cache.write_text(text + "\n", encoding="utf8")
    return scores


def has(column: Column, subject: Subject) -> bool:
    """Whether all seeds have a score that can be resampled."""
    return all(
        column.counts in one.counts
        and (is_exclusive(one.counts["cats"]) if column is ACCURACY else column.key in one.values)
        for one in subject.scores
    )


def is_exclusive(counts: Counts) -> bool:
    """Whether each document has one label at most and was given as many.

    counts: shape (n_docs, n_labels, 3).
    """
    hits, alarms, misses = np.moveaxis(counts.sum(axis=1), -1, 0)
    return bool(np.all(hits + misses <= 1) and np.array_equal(alarms, misses))


def values(column: Column, subject: Subject) -> list[float]:
    """The score of each seed, by spaCy's scorer."""
    return [one.full[column.key] for one in subject.scores]


def samples(column: Column, subject: Subject) -> Floats:
    """Bootstrap samples of the mean over seeds: the same documents are drawn for each, and for
    every subject with the same test set. Shape (resamples,)."""
    drawn = [bootstrap.resample(column.metric, s.counts[column.counts]) for s in subject.scores]
    averaged: Floats = np.mean(drawn, axis=0)
    return averaged


def compare(subjects: Sequence[Subject]) -> tuple[list[Line], list[Step]]:
    """Every subject against its teacher, and against those before it."""
    by_name = {subject.name: subject for subject in subjects}
    drawn = {
        (subject.name, column.key): samples(column, subject)
        for subject in subjects
        for column in TASKS
        if has(column, subject)
    }

    def differ(one: Subject, other: Subject) -> dict[str, Difference]:
        found = {}
        for column in TASKS:
            mine, theirs = (drawn.get((s.name, column.key)) for s in (one, other))
            if mine is not None and theirs is not None:
                value = mean(values(column, one)) - mean(values(column, other))
                found[column.key] = Difference(value, bootstrap.percentiles(mine - theirs))
        return found

    def retain(student: Subject, teacher: Subject) -> dict[str, Retention]:
        found = {}
        for column in TASKS:
            mine, theirs = (drawn.get((s.name, column.key)) for s in (student, teacher))
            if mine is not None and theirs is not None and theirs.all():
                value = mean(values(column, student)) / mean(values(column, teacher))
                found[column.key] = Retention(value, bootstrap.percentiles(mine / theirs))
        return found

    lines, steps = [], []
    for subject in subjects:
        teacher = by_name.get(subject.teacher)
        figures = {}
        for column in TASKS:
            if (subject.name, column.key) in drawn:
                seeds = values(column, subject)
                figures[column.key] = MeanScore(
                    mean=mean(seeds),
                    std=stdev(seeds) if len(seeds) > 1 else None,
                    seeds=seeds,
                    interval=bootstrap.percentiles(drawn[subject.name, column.key]),
                )
        lines.append(
            Line(
                name=subject.name,
                title=subject.title,
                teacher=subject.teacher,
                pipelines=subject.pipelines,
                scores=figures,
                retention={} if teacher is None else retain(subject, teacher),
                to_teacher={} if teacher is None else differ(subject, teacher),
                n_parameters=subject.scores[0].n_parameters,
            )
        )
        steps += [
            Step(subject.name, name, differ(subject, by_name[name]))
            for name in subject.before
            if name in by_name
        ]
    return lines, steps
