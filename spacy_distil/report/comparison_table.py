"""A comparison as Markdown, and as text for the terminal."""

from __future__ import annotations

from spacy_distil.report.layout import (
    EN_DASH,
    MISSING,
    TIMES,
    count,
    interval_cell,
    join_markdown,
    join_text,
    measured_on,
    resource_cells,
    score_cell,
    score_columns,
    with_range,
)
from spacy_distil.report.reliability import table as reliability_table
from spacy_distil.report.results import ComparedPipeline, Comparison, Retention
from spacy_distil.tables import Table


def make_tables(comparison: Comparison) -> list[Table]:
    """Make the tables of scores, of retention if there is a teacher, of speed and size, and of the
    calibration of pipes that have probabilities.
    """
    tables = [_scores(comparison)]
    if comparison.teacher is not None:
        tables.append(_retention(comparison, comparison.teacher))
    tables.append(_speed(comparison))
    tables.append(reliability_table.make_table({r.name: r.reliability for r in comparison.rows}))
    return [table for table in tables if len(table.header) > 1 and table.rows]


def to_markdown(comparison: Comparison, *, plot: str | None = None) -> str:
    """Write all tables, the plot and the footnote as Markdown.

    plot: path of the plot, relative to the Markdown file; `None` for none.
    """
    return join_markdown(
        make_tables(comparison),
        describe(comparison),
        title=comparison.title,
        plot=plot,
        alt="Accuracy against speed",
    )


def to_text(comparison: Comparison) -> str:
    """Write all tables for the terminal."""
    return join_text(make_tables(comparison))


def describe(comparison: Comparison) -> str:
    """Describe the measurement and the machine in a footnote."""
    settings = comparison.settings
    spread = (
        "± is the standard deviation over seeds; "
        if any(len(row.pipelines) > 1 for row in comparison.rows)
        else ""
    )
    return (
        f"Test set: {comparison.n_docs:,} documents, {comparison.n_words:,} spaCy tokens. Scores "
        f"in %, from spaCy's scorer; {spread}brackets hold the {settings.level:.0%} bootstrap "
        f"interval over documents. Words/s: spaCy tokens per second of wall time through "
        f"`nlp.pipe` from raw texts, median (min{EN_DASH}max) of {settings.repeats} interleaved "
        f"rounds on the CPU, {count(settings.threads, 'thread')}, batches of "
        f"{settings.batch_size} documents. Peak memory of one pass, load time and cold start "
        f"(process start to first doc): each pipeline in a process of its own, in the environment "
        f"named here. Calibration of the pipes that have probabilities. {reliability_table.ABOUT}"
        f"\n\n"
        f"{measured_on(comparison.machine, comparison.date)}"
    )


def _scores(comparison: Comparison) -> Table:
    columns = score_columns(row.scores for row in comparison.rows)
    return Table(
        title="Scores",
        header=["pipeline", *(column.title for column in columns)],
        rows=[
            [_name(row), *(score_cell(row.scores.get(c.key), c.decimals) for c in columns)]
            for row in comparison.rows
        ],
    )


def _retention(comparison: Comparison, teacher: str) -> Table:
    columns = score_columns(row.retention for row in comparison.rows)
    return Table(
        title=f"Retention: score / score of {teacher}, %",
        header=["pipeline", *(column.title for column in columns)],
        rows=[
            [_name(row), *(_retained(row.retention.get(c.key), c.decimals) for c in columns)]
            for row in comparison.rows
            if row.name != teacher
        ],
    )


def _speed(comparison: Comparison) -> Table:
    batch_size = comparison.settings.batch_size
    rates = {row.name: row.speed.words_per_second(batch_size) for row in comparison.rows}
    resources = ["MB on disk", "peak RSS, MB", "load, s", "cold start, s"]
    header = ["pipeline", "words/s", "parameters", *resources]
    if comparison.teacher is not None:
        header.insert(2, f"{TIMES} {comparison.teacher}")
    rows = []
    for row in comparison.rows:
        cells = [row.name, with_range(rates[row.name], "{:,.0f}"), _millions(row.n_parameters)]
        by_heading = resource_cells(row.speed, row.n_bytes)
        cells += [by_heading[heading] for heading in resources]
        if comparison.teacher is not None:
            speedup = rates[row.name].median / rates[comparison.teacher].median
            cells.insert(2, f"{speedup:.2f}")
        rows.append(cells)
    return Table(title="Speed and size", header=header, rows=rows)


def _name(row: ComparedPipeline) -> str:
    return row.name if len(row.pipelines) == 1 else f"{row.name} ({len(row.pipelines)} seeds)"


def _retained(retention: Retention | None, decimals: int) -> str:
    if retention is None:
        return MISSING
    return f"{retention.value * 100:.{decimals}f}{interval_cell(retention.interval)}"


def _millions(n: int) -> str:
    return f"{n / 1e6:.1f} M" if n >= 1e6 else f"{n:,}"
