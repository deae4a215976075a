"""Robustness as tables, as a plot and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spacy_distil.noise import CASING
from spacy_distil.report.bootstrap import LEVEL
from spacy_distil.report.layout import (
    MISSING,
    count,
    join_markdown,
    join_text,
    measured_on,
    score_cell,
    score_columns,
)
from spacy_distil.report.page import Commands, Figures, Page, Prose, Warnings, write_page
from spacy_distil.report.plot import colour_of, make_figure, save_plot
from spacy_distil.report.results import write_results
from spacy_distil.report.scores import Column
from spacy_distil.tables import Table
from spacy_distil.trust.robustness_results import NoisyScores, Robustness, RobustPipeline

STEM = "robustness"
_MINUS = "\N{MINUS SIGN}"


def write_robustness(result: Robustness, output: Path) -> None:
    """Write robustness.json, .md, .png and .html to a directory."""
    plot = output / f"{STEM}.png"
    write_results(result, to_markdown(result, plot=plot.name), output, stem=STEM)
    save_plot(make_drop_figure(result), plot)
    page = Page(
        title=result.title or "Robustness to noise",
        lead=f"{count(len(result.rows), 'pipeline')} on {result.test}: "
        f"{count(result.n_docs, 'document')}, {result.n_words:,} spaCy tokens.",
        blocks=[
            Warnings(result.verdicts),
            Figures(
                "Loss by noise",
                {each.title: make_drop_figure(result, [each]) for each in _tasks(result)},
                "At the highest rate. Bars are intervals over documents.",
            ),
            *make_tables(result),
            Prose("How this was measured", describe(result)),
            Commands([result.command]),
        ],
    )
    write_page(page, output / f"{STEM}.html")


def make_tables(result: Robustness) -> list[Table]:
    """Make a table for each task: noise by pipeline."""
    tables = []
    for column in _tasks(result):
        rows = [["none", "", "", *(_clean(row, column) for row in result.rows)]]
        for i, first in enumerate(result.rows[0].noisy):
            noise = first.noise
            rate = "all" if noise.kind in CASING else f"{100 * noise.rate:g}%"
            cells = [_cell(row.noisy[i], column) for row in result.rows]
            rows.append([noise.kind, rate, f"{100 * noise.changed:.1f}", *cells])
        header = ["noise", "rate", "tokens changed, %", *(row.name for row in result.rows)]
        tables.append(Table(column.title, header, rows))
    return tables


def to_markdown(result: Robustness, *, plot: str | None = None) -> str:
    """Write tables, plot and footnote as Markdown. plot: path, relative to the file."""
    return join_markdown(
        make_tables(result),
        describe(result),
        title=result.title,
        plot=plot,
        alt="Loss of the scores by noise",
    )


def to_text(result: Robustness) -> str:
    """Write all tables for the terminal."""
    return join_text(make_tables(result))


def describe(result: Robustness) -> str:
    """Describe the measurement and the machine in a footnote."""
    nothing = (
        f" No word of this test set can have this noise: {', '.join(result.unchanged)}."
        if result.unchanged
        else ""
    )
    return (
        f"Test set: {result.n_docs:,} documents, {result.n_words:,} spaCy tokens. Scores in %, and "
        f"their change from the clean text with its paired {LEVEL:.0%} bootstrap interval over "
        f"documents. Rate: share of the words that change, of those that the noise can change. "
        f"Typos (keyboard, swap, drop, double) change words of four letters and more. Seed "
        f"{result.seed}.{nothing}\n\n{measured_on(result.machine, result.date)}"
    )


def make_drop_figure(result: Robustness, columns: list[Column] | None = None) -> Any:
    """Plot the loss of each score by kind of noise, at the highest rate, a panel for each task.

    columns: the tasks; `None` for all.
    RETURNS: a figure of matplotlib.
    """
    columns = _tasks(result) if columns is None else columns
    names = [row.name for row in result.rows]
    figure, grid = make_figure(len(columns), title="" if len(columns) == 1 else result.title)
    for axes, column in zip(grid, columns, strict=False):
        height = 0.8 / len(names)
        kinds: list[str] = []
        for i, row in enumerate(result.rows):
            worst = {each.noise.kind: each for each in row.noisy}  # rates ascend
            kinds = [*worst]
            drops = [each.drops.get(column.key, (0.0, None)) for each in worst.values()]
            values = [100 * drop for drop, _ in drops]
            low = [100 * (drop - min(drop, ends[0])) if ends else 0.0 for drop, ends in drops]
            high = [100 * (max(drop, ends[1]) - drop) if ends else 0.0 for drop, ends in drops]
            axes.barh(
                [place + i * height for place in range(len(kinds))],
                values,
                height=0.9 * height,
                color=colour_of(row.name, names),
                label=row.name,
                xerr=[low, high],
                error_kw={"elinewidth": 0.8},
            )
        axes.set_yticks([place + 0.4 - height / 2 for place in range(len(kinds))], kinds)
        axes.invert_yaxis()
        axes.set_title(column.title, fontsize=10)
        axes.set_xlabel("points lost", fontsize=9)
        axes.legend(fontsize=8, frameon=False)
    return figure


def _tasks(result: Robustness) -> list[Column]:
    return [column for column in score_columns(row.clean for row in result.rows) if column.is_task]


def _clean(row: RobustPipeline, column: Column) -> str:
    return score_cell(row.clean.get(column.key), column.decimals)


def _cell(found: NoisyScores, column: Column) -> str:
    """Format as "93.10 (-3.12 [-3.5, -2.8])"."""
    score = found.scores.get(column.key)
    if score is None:
        return MISSING
    drop, interval = found.drops[column.key]
    ends = "" if interval is None else f" [{_points(interval[1], 1)}, {_points(interval[0], 1)}]"
    change = _points(drop, column.decimals)
    return f"{score.mean * 100:.{column.decimals}f} ({change}{ends})"


def _points(drop: float, decimals: int) -> str:
    text = f"{abs(drop) * 100:.{decimals}f}"
    if not float(text):
        return text
    return f"{_MINUS if drop > 0 else '+'}{text}"
