"""Accuracy against speed, a panel for each task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spacy_distil.errors import require
from spacy_distil.report.results import Report, Row
from spacy_distil.report.scores import COLUMNS, Column

# Okabe and Ito's colours, which the colour-blind can tell apart, darkest first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_PANEL = (3.6, 3.2)  # inches
_PER_LINE = 2


def draw(report: Report, path: Path) -> None:
    """Write the plot to `path`, a PNG file.

    Bars are the intervals over documents and the spread of the rounds; small dots are seeds.
    """
    require("matplotlib", extra="report", purpose="The plot of `distil compare`")
    # Not pyplot: no global state, and no display needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = [
        column
        for column in COLUMNS
        if column.is_task and any(column.key in row.scores for row in report.rows)
    ]
    n_wide = min(_PER_LINE, max(1, len(columns)))
    n_high = -(-max(1, len(columns)) // n_wide)
    figure = Figure(figsize=(_PANEL[0] * n_wide, _PANEL[1] * n_high), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(n_high, n_wide, squeeze=False).flatten()
    for axes, column in zip(grid, columns, strict=False):
        _draw_panel(axes, column, report.rows)
        axes.set_xlim(*_speed_range(report.rows))
    for axes in grid[len(columns) :]:
        axes.set_axis_off()
    if report.title:
        figure.suptitle(report.title, fontsize=11)
    figure.savefig(path, dpi=160)


def _speed_range(rows: list[Row]) -> tuple[float, float]:
    """From the slowest to the fastest round, with room for names on the right."""
    rates = [one.words_per_second for row in rows for one in row.speed.passes]
    return min(rates) / 1.4, max(rates) * 2


def _draw_panel(axes: Any, column: Column, rows: list[Row]) -> None:
    """axes: matplotlib's Axes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for i, row in enumerate(rows):
        score = row.scores.get(column.key)
        if score is None:
            continue
        colour = COLOURS[i % len(COLOURS)]
        speed = row.speed.summary()
        x, y = speed["words_per_second"], score.mean * 100
        low, high = score.interval or (score.mean, score.mean)
        axes.errorbar(
            x,
            y,
            xerr=[[x - speed["words_per_second_min"]], [speed["words_per_second_max"] - x]],
            # An interval of a bootstrap may lie to one side of the score.
            yerr=[[max(0.0, y - low * 100)], [max(0.0, high * 100 - y)]],
            fmt="o",
            color=colour,
            markersize=6,
            elinewidth=1,
        )
        if len(score.seeds) > 1:
            axes.plot(
                [x] * len(score.seeds),
                [value * 100 for value in score.seeds],
                "o",
                color=colour,
                markersize=3,
                markerfacecolor="white",
                zorder=3,
            )
        # Neighbours in the list are often neighbours in the plot: one above, the next below.
        axes.annotate(
            row.name,
            (x, y),
            xytext=(6, 5 if i % 2 == 0 else -13),
            textcoords="offset points",
            fontsize=9,
            color=colour,
        )
    axes.set_xscale("log")
    axes.margins(y=0.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=8)
    axes.set_title(column.title, fontsize=10)
    axes.set_xlabel("words/s, CPU", fontsize=9)
    axes.set_ylabel("%", fontsize=9)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
