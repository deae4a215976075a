"""A benchmark as Markdown, and as text for the terminal."""

from __future__ import annotations

from spacy_distil.report.bootstrap import LEVEL
from spacy_distil.report.layout import (
    EN_DASH,
    MISSING,
    count,
    join_markdown,
    join_text,
    measured_on,
    resource_cells,
    score_cell,
    score_columns,
    versions,
    with_range,
)
from spacy_distil.report.reliability import table as reliability_table
from spacy_distil.report.results import Benchmark
from spacy_distil.report.speed import Spread
from spacy_distil.tables import Table


def make_tables(benchmark: Benchmark) -> list[Table]:
    """Make the tables of speed, of memory and size, and with gold of scores and calibration."""
    tables = [_speed(benchmark), _memory(benchmark)]
    if any(row.scores for row in benchmark.rows):
        tables.append(_scores(benchmark))
    if any(row.reliability for row in benchmark.rows):
        found = {row.name: row.reliability for row in benchmark.rows}
        tables.append(reliability_table.make_table(found))
    return tables


def to_markdown(benchmark: Benchmark, *, plot: str | None = None) -> str:
    """Write all tables, the plot and the footnote as Markdown.

    plot: path of the plot, relative to the Markdown file; `None` for none.
    """
    scored = any(row.scores for row in benchmark.rows)
    return join_markdown(
        make_tables(benchmark),
        describe(benchmark),
        title=benchmark.title,
        plot=plot,
        alt="Accuracy against speed" if scored else "Speed",
    )


def to_text(benchmark: Benchmark) -> str:
    """Write all tables for the terminal."""
    return join_text(make_tables(benchmark))


def describe(benchmark: Benchmark) -> str:
    """Describe the measurement and the machine in a footnote."""
    settings = benchmark.settings
    pinned = settings.pin_cores
    scored = (
        f" Scores in %, from spaCy's scorer, on {benchmark.gold}; brackets hold the {LEVEL:.0%} "
        f"bootstrap interval over documents; the plot shows the largest "
        f"number of threads and the largest batches. Calibration of the pipes that have "
        f"probabilities, of pipelines in this environment. {reliability_table.ABOUT}"
        if benchmark.gold
        else ""
    )
    parts = [
        f"{count(benchmark.n_texts, 'text')}, {benchmark.n_words:,} spaCy tokens. Words/s: spaCy "
        f"tokens per second of wall time through `nlp.pipe` from raw texts, by documents in a "
        f"batch; median (min{EN_DASH}max) of {count(settings.repeats, 'round')} in which the "
        f"pipelines take turns, on the CPU. p50 and p95: of `nlp(text)` over "
        f"{min(settings.latency_texts, benchmark.n_texts):,} of the texts, one at a time. Peak "
        f"memory of one pass, load time and cold start (process start to first doc), the median "
        f"of {count(settings.load_repeats, 'start')}: each pipeline in a process of its own"
        + (f", pinned to {count(pinned, 'core')}" if pinned else "")
        + f".{scored}",
        measured_on(benchmark.machine, benchmark.date),
    ]
    for row in benchmark.rows:
        if row.source.python is not None:
            environment = row.environment
            parts.append(
                f"{row.name} has an environment of its own: Python {environment['python']}; "
                f"{versions(environment['versions'])}."
            )
    return "\n\n".join(parts)


def _speed(benchmark: Benchmark) -> Table:
    sizes = sorted(set(benchmark.settings.batch_sizes))
    latency = benchmark.settings.latency_texts > 0
    header = ["pipeline", "threads", *(f"words/s, batch {size:,}" for size in sizes)]
    rows = []
    for threads in benchmark.settings.threads:
        for row in benchmark.rows:
            speed = row.speeds[threads]
            cells = [row.name, str(threads)]
            cells += [with_range(speed.words_per_second(size), "{:,.0f}") for size in sizes]
            if latency:
                cells += [_milliseconds(speed.latency(percentile)) for percentile in (50, 95)]
            rows.append(cells)
    if latency:
        header += ["p50, ms", "p95, ms"]
    return Table(title="Speed", header=header, rows=rows)


def _memory(benchmark: Benchmark) -> Table:
    resources = ["load, s", "cold start, s", "peak RSS, MB", "MB on disk"]
    rows = []
    for threads in benchmark.settings.threads:
        for row in benchmark.rows:
            by_heading = resource_cells(row.speeds[threads], row.n_bytes)
            rows.append([row.name, str(threads), *(by_heading[heading] for heading in resources)])
    return Table("Start, memory and size", ["pipeline", "threads", *resources], rows)


def _scores(benchmark: Benchmark) -> Table:
    columns = score_columns(row.scores for row in benchmark.rows)
    return Table(
        title="Scores",
        header=["pipeline", *(column.title for column in columns)],
        rows=[
            [row.name, *(score_cell(row.scores.get(c.key), c.decimals) for c in columns)]
            for row in benchmark.rows
        ],
    )


def _milliseconds(seconds: Spread | None) -> str:
    if seconds is None:
        return MISSING
    return with_range(Spread(seconds.median * 1e3, seconds.min * 1e3, seconds.max * 1e3), "{:,.1f}")
