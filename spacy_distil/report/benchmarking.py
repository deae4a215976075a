"""Speed of pipelines by batch size and number of threads, with latency, memory and size."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from shutil import which
from typing import Any

import spacy

from spacy_distil.errors import ConfigError, require
from spacy_distil.pipelines import check_pipeline, count_bytes
from spacy_distil.report.benchmark_table import to_markdown
from spacy_distil.report.machine import PACKAGES, describe_machine
from spacy_distil.report.plot import Line, Point, draw_scores, draw_speeds
from spacy_distil.report.process import Subject, Worker, check_pin_cores
from spacy_distil.report.scores import COLUMNS, Column, has_gold
from spacy_distil.report.speed import LOAD_REPEATS, Speed, measure
from spacy_distil.text.documents import check_test_set, read_documents, read_examples

STEM = "benchmark"
BATCH_SIZES = (1, 16, 256)
THREADS = (1, 2)
LATENCY_TEXTS = 100


@dataclass(frozen=True)
class BenchmarkSettings:
    """How it was measured.

    repeats, load_repeats: timed rounds, and starts in a fresh process.
    threads, batch_sizes: each of these, documents at a time.
    latency_texts: texts that are processed one at a time in each round.
    pin_cores: number of cores that processes are confined to; `None` for all.
    limit: first N texts and gold documents; 0 for all.
    """

    repeats: int
    load_repeats: int
    threads: Sequence[int]
    batch_sizes: Sequence[int]
    latency_texts: int
    pin_cores: int | None
    limit: int


@dataclass(frozen=True)
class BenchmarkRow:
    """One pipeline.

    subject: what it is.
    n_bytes: size on disk.
    speeds: number of threads to what was measured.
    environment: "python" and "versions" of its interpreter.
    scores: spaCy's, of what the pipeline predicts and the gold has; empty without gold.
    """

    name: str
    subject: Subject
    n_bytes: int
    speeds: Mapping[int, Speed]
    environment: dict[str, Any]
    scores: dict[str, float]


@dataclass(frozen=True)
class Benchmark:
    """What was measured.

    title: heading of the tables; empty for none.
    texts, n_texts, n_words: what was processed, and its size in documents and spaCy tokens.
    gold: path of the documents that were scored; `None` for none.
    date: when it began, ISO 8601.
    command: how it was called; empty where it was called from Python.
    """

    title: str
    texts: str
    n_texts: int
    n_words: int
    gold: str | None
    settings: BenchmarkSettings
    machine: dict[str, Any]
    date: str
    command: str
    rows: Sequence[BenchmarkRow]

    def to_dict(self) -> dict[str, Any]:
        """Everything, raw timings included, as JSON has it."""
        return {**asdict(self), "rows": [_row_to_dict(row) for row in self.rows]}


def benchmark(
    subjects: Mapping[str, Subject],
    texts: Path,
    output: Path | None = None,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    threads: Sequence[int] = THREADS,
    repeats: int = 5,
    load_repeats: int = LOAD_REPEATS,
    latency_texts: int = LATENCY_TEXTS,
    pin_cores: int | None = None,
    gold: Path | None = None,
    limit: int = 0,
    title: str = "",
    command: str = "",
    log: Callable[[str], None] = lambda message: None,
) -> Benchmark:
    """Measure pipelines on the CPU, and write benchmark.json, benchmark.md and benchmark.png.

    subjects: pipelines by name, each with the interpreter that runs it.
    texts: .txt with one text per line, .jsonl with {"text": ...} in each line, or .spacy.
    output: directory, made where it is missing; `None` to write nothing.
    batch_sizes: of `nlp.pipe`, in documents.
    threads: of each pipeline's process; all pipelines are measured with the first number, then
        their processes end, and the next number follows.
    repeats: timed rounds over all texts, in which the pipelines take turns; the median counts.
    load_repeats: fresh processes in which each pipeline is loaded; the median counts.
    latency_texts: texts processed one at a time in each round, spread over all of them.
    pin_cores: confine each process to so many cores; `None` for all. On Linux.
    gold: .spacy file of annotated documents to score on; then the plot is accuracy against speed.
    limit: the first N texts, and gold documents; 0 for all.
    title: heading of the tables.
    command: how this was called, for the record.
    log: told what is being done.
    """
    settings = BenchmarkSettings(
        repeats=repeats,
        load_repeats=load_repeats,
        threads=threads,
        batch_sizes=batch_sizes,
        latency_texts=latency_texts,
        pin_cores=pin_cores,
        limit=limit,
    )
    _check(subjects, settings, output=output, gold=gold)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    machine = describe_machine()
    documents = read_documents(texts, spacy.blank("xx"), limit=limit).texts
    columns = [] if gold is None else _columns(gold, limit)

    speeds: dict[str, dict[int, Speed]] = {name: {} for name in subjects}
    facts: dict[str, dict[str, Any]] = {}

    def take_facts(name: str, worker: Worker) -> None:
        full: dict[str, Any] = {}
        if gold is not None:
            log(f"Scores of {name}")
            full = worker.score(gold, batch_size=max(batch_sizes), limit=limit)
        facts[name] = {
            "n_bytes": count_bytes(worker.path),
            "environment": worker.environment(PACKAGES),
            "scores": {c.key: full[c.key] for c in columns if full.get(c.key) is not None},
        }

    for n_threads in threads:
        log(f"Threads: {n_threads}")
        measured = measure(
            subjects,
            documents,
            repeats=repeats,
            load_repeats=load_repeats,
            threads=n_threads,
            batch_sizes=batch_sizes,
            latency_texts=min(latency_texts, len(documents)),
            pin_cores=pin_cores,
            finish=take_facts if n_threads == threads[-1] else None,
            log=log,
        )
        for name, speed in measured.items():
            speeds[name][n_threads] = speed
    first = next(iter(speeds.values()))[threads[0]]
    result = Benchmark(
        title=title,
        texts=str(texts),
        n_texts=len(documents),
        n_words=first.passes[0].words,
        gold=None if gold is None else str(gold),
        settings=settings,
        machine=machine,
        date=date,
        command=command,
        rows=[
            BenchmarkRow(name=name, subject=subject, speeds=speeds[name], **facts[name])
            for name, subject in subjects.items()
        ],
    )
    if output is not None:
        write(result, output)
    return result


def write(result: Benchmark, output: Path) -> None:
    """benchmark.json, benchmark.md and benchmark.png in `output`."""
    output.mkdir(parents=True, exist_ok=True)
    plot = output / f"{STEM}.png"
    draw(result, plot)
    (output / f"{STEM}.json").write_text(
        json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8"
    )
    (output / f"{STEM}.md").write_text(to_markdown(result, plot=plot.name), encoding="utf-8")


def draw(result: Benchmark, path: Path) -> None:
    """The plot, a PNG file: accuracy against speed where there are scores, else speed by batch
    size. The former is with the most threads and the largest batches."""
    names = [row.name for row in result.rows]
    threads, batch_size = max(result.settings.threads), max(result.settings.batch_sizes)
    panels: dict[Column, list[Point]] = {}
    for column in COLUMNS:
        points = [
            Point(
                name=row.name,
                speed=row.speeds[threads].words_per_second(batch_size),
                score=row.scores[column.key] * 100,
            )
            for row in result.rows
            if column.key in row.scores
        ]
        if points and column.is_task:
            panels[column] = points
    if panels:
        draw_scores(panels, names, path, title=result.title)
        return
    lines = {
        f"threads: {n}": [
            Line(row.name, {size: speed.words_per_second(size) for size in speed.batch_sizes})
            for row in result.rows
            for speed in [row.speeds[n]]
        ]
        for n in result.settings.threads
    }
    draw_speeds(lines, names, path, title=result.title)


def _columns(gold: Path, limit: int) -> list[Column]:
    """What the gold documents are annotated with: spaCy scores missing categories as 0."""
    examples = read_examples(spacy.blank("xx"), gold, limit=limit)
    return [column for column in COLUMNS if has_gold(examples, column.counts)]


def _row_to_dict(row: BenchmarkRow) -> dict[str, Any]:
    runs = []
    for threads, speed in row.speeds.items():
        p50, p95 = speed.latency(50), speed.latency(95)
        runs.append(
            {
                "threads": threads,
                "words_per_second": [
                    {"batch_size": size, **asdict(speed.words_per_second(size))}
                    for size in speed.batch_sizes
                ],
                "latency_seconds": {
                    "p50": asdict(p50) if p50 else None,
                    "p95": asdict(p95) if p95 else None,
                },
                "peak_rss_bytes": speed.peak_rss_bytes,
                "load_seconds": speed.load_seconds,
                "cold_start_seconds": speed.cold_start_seconds,
                "raw": asdict(speed),
            }
        )
    return {
        "name": row.name,
        **asdict(row.subject),
        "n_bytes": row.n_bytes,
        "environment": row.environment,
        "scores": row.scores,
        "runs": runs,
    }


def _check(
    subjects: Mapping[str, Subject],
    settings: BenchmarkSettings,
    *,
    output: Path | None,
    gold: Path | None,
) -> None:
    """Everything that can be known to be wrong before minutes are spent on measuring."""
    if not subjects:
        raise ConfigError("No pipelines to measure: expected one or more.")
    for name in ("repeats", "load_repeats", "threads", "batch_sizes"):
        value = getattr(settings, name)
        values = [value] if isinstance(value, int) else list(value)
        if not values or min(values) < 1:
            shown = ",".join(map(str, values)) or "nothing"
            raise ConfigError(f"{name} = {shown}: expected numbers of at least 1.")
    for name in ("limit", "latency_texts"):
        if getattr(settings, name) < 0:
            raise ConfigError(f"{name} = {getattr(settings, name)}: expected 0 or more.")
    check_pin_cores(settings.pin_cores)
    for subject in subjects.values():
        if subject.python is None:
            check_pipeline(subject.pipeline)
        elif which(subject.python) is None:
            raise ConfigError(
                f"No interpreter {subject.python}: expected the python of an environment with "
                "spaCy in it, such as .venv-light/bin/python."
            )
    if gold is not None:
        check_test_set(gold)
    if output is not None:
        require("matplotlib", extra="report", purpose="The plot of `distil benchmark`")
        if output.exists() and not output.is_dir():
            raise ConfigError(f"{output} is a file: expected a directory to write the results to.")
