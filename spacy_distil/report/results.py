"""What a comparison found: the numbers behind the tables, the plot and the JSON file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from spacy_distil.report.bootstrap import Interval
from spacy_distil.report.speed import Speed


@dataclass(frozen=True)
class Figure:
    """A score of one row.

    mean: over the seeds.
    std: sample standard deviation over the seeds; `None` with fewer than two.
    seeds: the score of each.
    interval: of the mean, over documents; `None` where the documents' counts are not known.
    """

    mean: float
    std: float | None
    seeds: list[float]
    interval: Interval | None


@dataclass(frozen=True)
class Retention:
    """A row's mean score divided by the teacher's, with its paired interval over documents."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class Row:
    """One name in the tables: a pipeline, or several seeds of it.

    pipelines: paths or package names of the seeds.
    scores: `Column.key` to score, of what the row predicts and the test set has.
    retention: `Column.key` of a task to retention; empty without a teacher.
    n_parameters, n_bytes: weights, and size on disk, of the first seed.
    speed: of the first seed.
    full_scores: all of spaCy's scores, by seed.
    """

    name: str
    pipelines: list[str]
    scores: dict[str, Figure]
    retention: dict[str, Retention]
    n_parameters: int
    n_bytes: int
    speed: Speed
    full_scores: list[dict[str, Any]]


@dataclass(frozen=True)
class Settings:
    """How it was measured.

    repeats, load_repeats: timed rounds, and starts in a fresh process.
    threads, batch_size: of each pipeline's process, and documents at a time.
    limit: first N documents of the test set; 0 for all.
    resamples, seed, level: of the bootstrap.
    """

    repeats: int
    load_repeats: int
    threads: int
    batch_size: int
    limit: int
    resamples: int
    seed: int
    level: float


@dataclass(frozen=True)
class Report:
    """A whole comparison.

    title: heading of the tables; empty for none.
    test: path of the test set. n_docs, n_words: its size, in documents and spaCy tokens.
    teacher: name of the row that retention refers to.
    date: when it began, ISO 8601.
    command: how it was called; empty where it was called from Python.
    """

    title: str
    test: str
    n_docs: int
    n_words: int
    teacher: str | None
    settings: Settings
    machine: dict[str, Any]
    date: str
    command: str
    rows: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """Everything, raw timings included, as JSON has it."""
        rows = [{**asdict(row), "speed": row.speed.summary()} for row in self.rows]
        return {**asdict(self), "rows": rows}
