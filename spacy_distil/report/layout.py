"""Parts that all reports of measurements share: cells, tables in Markdown, and the footnotes."""

from __future__ import annotations

from collections.abc import Iterable
from math import floor
from typing import Any

from spacy_distil.report.bootstrap import Interval
from spacy_distil.report.means import MeanScore
from spacy_distil.report.scores import COLUMNS, Column
from spacy_distil.report.speed import Speed, Spread
from spacy_distil.tables import Table, megabytes_cell

EN_DASH = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
MISSING = EN_DASH


# Whole reports


def join_text(tables: Iterable[Table], *notes: str) -> str:
    """Join tables and notes for the terminal."""
    return "\n".join([*(table.to_text() for table in tables), *notes])


def join_markdown(
    tables: Iterable[Table], note: str, *, title: str = "", plot: str | None = None, alt: str = ""
) -> str:
    """Join tables, plot and note to a Markdown document.

    title: heading; empty for none.
    plot: path of the plot, relative to the Markdown file; `None` for none.
    alt: text that stands for the plot.
    """
    parts = [f"### {title}"] if title else []
    parts += [table.to_markdown() for table in tables]
    if plot is not None:
        parts.append(f"![{alt}]({plot})")
    return "\n\n".join([*parts, note]) + "\n"


def score_columns(scores: Iterable[Iterable[str]]) -> list[Column]:
    """Choose the columns with a score of at least one pipeline.

    scores: `Column.key`s of each pipeline.
    """
    keys = {key for each in scores for key in each}
    return [column for column in COLUMNS if column.key in keys]


def measured_on(machine: dict[str, Any], date: str) -> str:
    """Describe CPU, memory, system and versions in a footnote.

    machine: see `describe_machine`.
    date: ISO 8601.
    """
    return (
        f"Measured on {machine['cpu']}, {machine['cores'] or machine['logical_cores']} cores "
        f"({machine['logical_cores']} logical), {machine['memory_bytes'] / 2**30:.0f} GiB of "
        f"memory; {machine['system']}; Python {machine['python']}; "
        f"{versions(machine['versions'])}. {date[:10]}."
    )


def versions(packages: dict[str, str | None]) -> str:
    """List the installed packages with their versions."""
    return ", ".join(f"{package} {version}" for package, version in packages.items() if version)


# Cells


def resource_cells(speed: Speed, n_bytes: int) -> dict[str, str]:
    """Cells on load time, memory and size, by the heading of their column.

    n_bytes: size on disk.
    """
    return {
        "load, s": f"{speed.load_seconds:.2f}",
        "cold start, s": f"{speed.cold_start_seconds:.2f}",
        "peak RSS, MB": f"{speed.peak_rss_bytes / 1e6:,.0f}",
        "MB on disk": megabytes_cell(n_bytes),
    }


def score_cell(score: MeanScore | None, decimals: int) -> str:
    """Format a score in %, with its deviation over seeds and its interval over documents."""
    if score is None:
        return MISSING
    std = "" if score.std is None else f" ± {score.std * 100:.{decimals}f}"
    return f"{score.mean * 100:.{decimals}f}{std}{interval_cell(score.interval)}"


def interval_cell(interval: Interval | None) -> str:
    """Format an interval of shares in %, to stand behind a figure."""
    return "" if interval is None else f" [{interval[0] * 100:.1f}, {interval[1] * 100:.1f}]"


def percent_rounded_down(share: float | None) -> str:
    """Format a share in %. Only full agreement is "100.00"; `None` is a missing value."""
    return MISSING if share is None else f"{floor(share * 10_000) / 100:.2f}"


def with_range(spread: Spread, form: str) -> str:
    """Median (min-max). form: format of each number, such as "{:,.0f}"."""
    low, high = form.format(spread.min), form.format(spread.max)
    return f"{form.format(spread.median)} ({low}{EN_DASH}{high})"


def count(n: int, noun: str) -> str:
    """1 thread, 2 threads."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
