"""Results of a comparison and of a benchmark: the numbers behind the tables, plots and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spacy_distil.errors import ConfigError, require
from spacy_distil.report.bootstrap import Interval
from spacy_distil.report.means import MeanScore
from spacy_distil.report.process import PipelineSource
from spacy_distil.report.reliability.measures import Reliability
from spacy_distil.report.speed import Speed
from spacy_distil.runs.files import write_text
from spacy_distil.runs.outputs import check_writable


@dataclass(frozen=True, kw_only=True)
class Results:
    """The record that every measurement keeps.

    title: heading of the tables; empty for none.
    n_words: number of spaCy tokens that each pipeline processed.
    machine: see `describe_machine`.
    date: start of the measurement, ISO 8601.
    command: command line; empty for a call from Python.
    verdicts: see `spacy_distil.report.verdicts`.
    """

    title: str
    n_words: int
    machine: dict[str, Any]
    date: str
    command: str
    verdicts: list[str]

    def to_dict(self) -> dict[str, Any]:
        """All results for JSON, raw timings included."""
        return asdict(self)


def check_results_directory(output: Path, *, command: str) -> None:
    """Raise an error if the results of a command, a plot among them, cannot be written."""
    require("matplotlib", extra="report", purpose=f"The plot of `distil {command}`")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file: expected a directory to write the results to.")
    check_writable(output)


def write_results(results: Results, markdown: str, output: Path, *, stem: str) -> None:
    """Write `stem`.json and `stem`.md to a directory."""
    write_text(output / f"{stem}.json", json.dumps(results.to_dict(), indent=2) + "\n")
    write_text(output / f"{stem}.md", markdown)


# Comparison on a test set


@dataclass(frozen=True)
class Retention:
    """Mean score divided by the teacher's mean score, with its paired interval over documents."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class ComparedPipeline:
    """Results of one pipeline, or of several seeds of it.

    pipelines: path or package name of each seed.
    scores: `Column.key` to score (0 to 1), for the annotations that both the pipeline and the gold
        have.
    reliability: name of a pipe to how far its probabilities can be believed.
    retention: `Column.key` of a task to retention; empty without a teacher.
    n_parameters, n_bytes: number of weights and size on disk of the first seed.
    speed: of the first seed.
    full_scores: all of spaCy's scores, by seed.
    """

    name: str
    pipelines: list[str]
    scores: dict[str, MeanScore]
    reliability: dict[str, Reliability]
    retention: dict[str, Retention]
    n_parameters: int
    n_bytes: int
    speed: Speed
    full_scores: list[dict[str, Any]]


@dataclass(frozen=True)
class ComparisonSettings:
    """Settings of a comparison.

    repeats, load_repeats: number of timed rounds, and of starts in a fresh process.
    threads: number of threads of each pipeline's process.
    batch_size: documents per batch.
    limit: only the first N documents of the test set; 0 for all.
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


@dataclass(frozen=True, kw_only=True)
class Comparison(Results):
    """Results of `compare`.

    test: path of the test set.
    n_docs: number of documents in it.
    teacher: name of the pipeline that retention refers to.
    rows: results by pipeline, in the order of the tables.
    """

    test: str
    n_docs: int
    teacher: str | None
    settings: ComparisonSettings
    rows: list[ComparedPipeline]

    def to_dict(self) -> dict[str, Any]:
        rows = [{**asdict(row), "speed": row.speed.summary()} for row in self.rows]
        return {**super().to_dict(), "rows": rows}


# Benchmark of speed


@dataclass(frozen=True)
class BenchmarkSettings:
    """Settings of a benchmark.

    repeats, load_repeats: number of timed rounds, and of starts in a fresh process.
    threads: numbers of threads to measure with.
    batch_sizes: batch sizes to measure with, in documents.
    latency_texts: number of texts processed one at a time in each round.
    pin_cores: number of cores that each process is confined to; `None` for all.
    limit: only the first N texts and gold documents; 0 for all.
    """

    repeats: int
    load_repeats: int
    threads: Sequence[int]
    batch_sizes: Sequence[int]
    latency_texts: int
    pin_cores: int | None
    limit: int


@dataclass(frozen=True)
class BenchmarkedPipeline:
    """Results of one pipeline.

    n_bytes: size on disk.
    speeds: number of threads to speed.
    environment: "python" and "versions" of its interpreter.
    scores, reliability: as in `ComparedPipeline`, of one seed; empty without gold. A pipeline with
        an interpreter of its own has no reliability.
    """

    name: str
    source: PipelineSource
    n_bytes: int
    speeds: Mapping[int, Speed]
    environment: dict[str, Any]
    scores: dict[str, MeanScore]
    reliability: dict[str, Reliability]

    def to_dict(self) -> dict[str, Any]:
        """All results for JSON, raw timings included."""
        return {
            "name": self.name,
            **asdict(self.source),
            "n_bytes": self.n_bytes,
            "environment": self.environment,
            "scores": {key: asdict(score) for key, score in self.scores.items()},
            "reliability": {name: asdict(each) for name, each in self.reliability.items()},
            "runs": [_run_to_dict(threads, speed) for threads, speed in self.speeds.items()],
        }


@dataclass(frozen=True, kw_only=True)
class Benchmark(Results):
    """Results of `benchmark`.

    texts: path of the texts.
    n_texts: number of them.
    gold: path of the documents that were scored; `None` for none.
    rows: results by pipeline, in the order of the tables.
    """

    texts: str
    n_texts: int
    gold: str | None
    settings: BenchmarkSettings
    rows: Sequence[BenchmarkedPipeline]

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "rows": [row.to_dict() for row in self.rows]}


def _run_to_dict(threads: int, speed: Speed) -> dict[str, Any]:
    latency = {f"p{percentile}": speed.latency(percentile) for percentile in (50, 95)}
    return {
        "threads": threads,
        "words_per_second": [
            {"batch_size": size, **asdict(speed.words_per_second(size))}
            for size in speed.batch_sizes
        ],
        "latency_seconds": {key: asdict(p) if p else None for key, p in latency.items()},
        "peak_rss_bytes": speed.peak_rss_bytes,
        "load_seconds": speed.load_seconds,
        "cold_start_seconds": speed.cold_start_seconds,
        "raw": asdict(speed),
    }
