"""A benchmark as Markdown, and as text for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spacy_distil.report.layout import (
    EN_DASH,
    MISSING,
    count,
    measured_on,
    versions,
    with_range,
)
from spacy_distil.report.scores import COLUMNS
from spacy_distil.report.speed import Spread
from spacy_distil.tables import Table

if TYPE_CHECKING:
    from spacy_distil.report.benchmarking import Benchmark


def make_tables(result: Benchmark) -> list[Table]:
    """Speed, memory and size, and scores where there is gold."""
    tables = [_speed(result), _memory(result)]
    if any(row.scores for row in result.rows):
        tables.append(_scores(result))
    return tables


def to_markdown(result: Benchmark, *, plot: str | None = None) -> str:
    """All tables, the plot and how it was measured.

    plot: where the plot lies, as the Markdown file has to link to it.
    """
    parts = [f"### {result.title}"] if result.title else []
    parts += [table.to_markdown() for table in make_tables(result)]
    if plot is not None:
        scored = any(row.scores for row in result.rows)
        parts.append(f"![{'Accuracy against speed' if scored else 'Speed'}]({plot})")
    parts.append(describe(result))
    return "\n\n".join(parts) + "\n"


def to_text(result: Benchmark) -> str:
    """All tables, for the terminal."""
    return "\n".join(table.to_text() for table in make_tables(result))


def describe(result: Benchmark) -> str:
    """How it was measured, and on what."""
    settings = result.settings
    pinned = settings.pin_cores
    scored = (
        f" Scores in %, from spaCy's scorer, on {result.gold}; the plot has the most threads and "
        f"the largest batches."
        if result.gold
        else ""
    )
    parts = [
        f"{count(result.n_texts, 'text')}, {result.n_words:,} spaCy tokens. Words/s: spaCy tokens "
        f"per second of wall time through `nlp.pipe` from raw texts, by documents in a batch; "
        f"median (min{EN_DASH}max) of {count(settings.repeats, 'round')} in which the pipelines "
        f"take turns, on the CPU. p50 and p95: of `nlp(text)` over "
        f"{min(settings.latency_texts, result.n_texts):,} of the texts, one at a time. Peak memory "
        f"of one pass, load time and cold start (process start to first doc), the median of "
        f"{count(settings.load_repeats, 'start')}: each pipeline in a process of its own"
        + (f", pinned to {count(pinned, 'core')}" if pinned else "")
        + f".{scored}",
        measured_on(result.machine, result.date),
    ]
    for row in result.rows:
        if row.subject.python is not None:
            environment = row.environment
            parts.append(
                f"{row.name} has an environment of its own: Python {environment['python']}; "
                f"{versions(environment['versions'])}."
            )
    return "\n\n".join(parts)


def _speed(result: Benchmark) -> Table:
    sizes = sorted(set(result.settings.batch_sizes))
    latency = result.settings.latency_texts > 0
    header = ["pipeline", "threads", *(f"words/s, batch {size:,}" for size in sizes)]
    rows = []
    for threads in result.settings.threads:
        for row in result.rows:
            speed = row.speeds[threads]
            cells = [row.name, str(threads)]
            cells += [with_range(speed.words_per_second(size), "{:,.0f}") for size in sizes]
            if latency:
                cells += [_milliseconds(speed.latency(percentile)) for percentile in (50, 95)]
            rows.append(cells)
    if latency:
        header += ["p50, ms", "p95, ms"]
    return Table(title="Speed", header=header, rows=rows)


def _memory(result: Benchmark) -> Table:
    return Table(
        title="Start, memory and size",
        header=["pipeline", "threads", "load, s", "cold start, s", "peak RSS, MB", "MB on disk"],
        rows=[
            [
                row.name,
                str(threads),
                f"{row.speeds[threads].load_seconds:.2f}",
                f"{row.speeds[threads].cold_start_seconds:.2f}",
                f"{row.speeds[threads].peak_rss_bytes / 1e6:,.0f}",
                f"{row.n_bytes / 1e6:,.1f}",
            ]
            for threads in result.settings.threads
            for row in result.rows
        ],
    )


def _scores(result: Benchmark) -> Table:
    columns = [c for c in COLUMNS if any(c.key in row.scores for row in result.rows)]
    return Table(
        title="Scores",
        header=["pipeline", *(c.title for c in columns)],
        rows=[
            [
                row.name,
                *(
                    f"{row.scores[c.key] * 100:.{c.decimals}f}" if c.key in row.scores else MISSING
                    for c in columns
                ),
            ]
            for row in result.rows
        ],
    )


def _milliseconds(seconds: Spread | None) -> str:
    if seconds is None:
        return MISSING
    return with_range(Spread(seconds.median * 1e3, seconds.min * 1e3, seconds.max * 1e3), "{:,.1f}")
