"""Scores over seeds, with bootstrap intervals over documents."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import numpy as np

from spacy_distil.report import bootstrap
from spacy_distil.report.means import MeanScore
from spacy_distil.report.results import Retention
from spacy_distil.report.scores import COLUMNS, Column, TaskScores


def aggregate(seeds: Sequence[TaskScores]) -> dict[str, MeanScore]:
    """Compute mean, standard deviation and interval of each score that all seeds have."""
    aggregated = {}
    for column in COLUMNS:
        if not all_have(column, seeds):
            continue
        values = [seed.values[column.key] for seed in seeds]
        aggregated[column.key] = MeanScore.of(values, resample(column, seeds))
    return aggregated


def compute_retention(
    student: Sequence[TaskScores], teacher: Sequence[TaskScores]
) -> dict[str, Retention]:
    """Divide the student's score by the teacher's, for each task that both have.

    student, teacher: scores of each seed.
    """
    retention = {}
    for column in COLUMNS:
        if not (column.is_task and all_have(column, student) and all_have(column, teacher)):
            continue
        teacher_mean = mean(seed.values[column.key] for seed in teacher)
        if teacher_mean == 0:
            continue
        student_samples, teacher_samples = resample(column, student), resample(column, teacher)
        retention[column.key] = Retention(
            value=mean(seed.values[column.key] for seed in student) / teacher_mean,
            interval=None
            if student_samples is None or teacher_samples is None or not teacher_samples.all()
            else bootstrap.percentiles(student_samples / teacher_samples),
        )
    return retention


def all_have(column: Column, seeds: Sequence[TaskScores]) -> bool:
    """Whether all seeds have a score."""
    return all(column.key in seed.values for seed in seeds)


def resample(column: Column, seeds: Sequence[TaskScores]) -> bootstrap.Floats | None:
    """Make bootstrap samples of the seeds' mean. The same documents are drawn for each seed.

    RETURNS: (resamples,); `None` if the counts of the documents are unknown.
    """
    if not all(column.counts in seed.counts for seed in seeds):
        return None
    samples: bootstrap.Floats = np.mean(
        [bootstrap.resample(column.metric, seed.counts[column.counts]) for seed in seeds], axis=0
    )
    return samples
