"""Plots: accuracy against speed, a panel for each task, and speed by batch size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spacy_distil.errors import require
from spacy_distil.report.results import Report
from spacy_distil.report.scores import COLUMNS, Column
from spacy_distil.report.speed import Spread

# Okabe and Ito's colours, which the colour-blind can tell apart, darkest first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_PANEL = (3.6, 3.2)  # inches
_PER_LINE = 2


@dataclass(frozen=True)
class Point:
    """One pipeline in one panel.

    speed: words/s. score: in %, with its interval over documents and the scores of seeds, where
    there are such.
    """

    name: str
    speed: Spread
    score: float
    interval: tuple[float, float] | None = None
    seeds: Sequence[float] = ()


@dataclass(frozen=True)
class Line:
    """Words/s of one pipeline by batch size."""

    name: str
    speeds: Mapping[int, Spread]


def draw(report: Report, path: Path) -> None:
    """Write the plot of a comparison to `path`, a PNG file."""
    names = [row.name for row in report.rows]
    speeds = {
        row.name: row.speed.words_per_second(report.settings.batch_size) for row in report.rows
    }
    panels: dict[Column, list[Point]] = {}
    for column in COLUMNS:
        if not column.is_task:
            continue
        points = [
            Point(
                name=row.name,
                speed=speeds[row.name],
                score=score.mean * 100,
                interval=None
                if score.interval is None
                else (score.interval[0] * 100, score.interval[1] * 100),
                seeds=[value * 100 for value in score.seeds] if len(score.seeds) > 1 else [],
            )
            for row in report.rows
            if (score := row.scores.get(column.key)) is not None
        ]
        if points:
            panels[column] = points
    draw_scores(panels, names, path, title=report.title)


def draw_scores(
    panels: Mapping[Column, Sequence[Point]], names: Sequence[str], path: Path, *, title: str = ""
) -> None:
    """Accuracy against speed, a panel for each task, to `path`, a PNG file.

    Bars are the intervals over documents and the spread of the rounds; small dots are seeds.
    names: of the pipelines, in the order of their colours.
    """
    speeds = [point.speed for points in panels.values() for point in points]
    with _figure(len(panels), path, title=title) as grid:
        for axes, (column, points) in zip(grid, panels.items(), strict=False):
            for point in points:
                _draw_point(axes, point, names.index(point.name))
            axes.set_xscale("log")
            axes.margins(y=0.15)
            # With room for names on the right.
            axes.set_xlim(min(one.min for one in speeds) / 1.4, max(one.max for one in speeds) * 2)
            _label_words(axes.xaxis)
            axes.set_title(column.title, fontsize=10)
            axes.set_xlabel("words/s, CPU", fontsize=9)
            axes.set_ylabel("%", fontsize=9)


def draw_speeds(
    panels: Mapping[str, Sequence[Line]], names: Sequence[str], path: Path, *, title: str = ""
) -> None:
    """Words/s by batch size, a panel for each title in `panels`, to `path`, a PNG file.

    names: of the pipelines, in the order of their colours.
    """
    with _figure(len(panels), path, title=title) as grid:
        for axes, (heading, lines) in zip(grid, panels.items(), strict=False):
            for line in lines:
                sizes = sorted(line.speeds)
                y = [line.speeds[size].median for size in sizes]
                axes.errorbar(
                    sizes,
                    y,
                    yerr=[
                        [line.speeds[size].median - line.speeds[size].min for size in sizes],
                        [line.speeds[size].max - line.speeds[size].median for size in sizes],
                    ],
                    fmt="o-",
                    color=COLOURS[names.index(line.name) % len(COLOURS)],
                    markersize=4,
                    elinewidth=1,
                    label=line.name,
                )
            axes.set_xscale("log")
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
            axes.set_xticks([], minor=True)
            axes.set_yscale("log")
            _label_words(axes.yaxis)
            axes.set_title(heading, fontsize=10)
            axes.set_xlabel("documents in a batch", fontsize=9)
            axes.set_ylabel("words/s, CPU", fontsize=9)
            axes.legend(fontsize=8, frameon=False)


@contextmanager
def _figure(n: int, path: Path, *, title: str) -> Iterator[Any]:
    """The axes of `n` panels, which are written to `path` in the end."""
    require("matplotlib", extra="report", purpose="The plot")
    # Not pyplot: no global state, and no display needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_wide = min(_PER_LINE, max(1, n))
    n_high = -(-max(1, n) // n_wide)
    figure = Figure(figsize=(_PANEL[0] * n_wide, _PANEL[1] * n_high), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(n_high, n_wide, squeeze=False).flatten()
    yield grid
    for axes in grid[:n]:
        axes.tick_params(labelsize=8)
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[n:]:
        axes.set_axis_off()
    if title:
        figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=160)


def _draw_point(axes: Any, point: Point, i: int) -> None:
    """axes: matplotlib's Axes. i: the pipeline's place in the list."""
    colour = COLOURS[i % len(COLOURS)]
    x, y = point.speed.median, point.score
    low, high = point.interval or (y, y)
    axes.errorbar(
        x,
        y,
        xerr=[[x - point.speed.min], [point.speed.max - x]],
        # An interval of a bootstrap may lie to one side of the score.
        yerr=[[max(0.0, y - low)], [max(0.0, high - y)]],
        fmt="o",
        color=colour,
        markersize=6,
        elinewidth=1,
    )
    axes.plot(
        [x] * len(point.seeds),
        point.seeds,
        "o",
        color=colour,
        markersize=3,
        markerfacecolor="white",
        zorder=3,
    )
    # Neighbours in the list are often neighbours in the plot: one above, the next below.
    axes.annotate(
        point.name,
        (x, y),
        xytext=(6, 5 if i % 2 == 0 else -13),
        textcoords="offset points",
        fontsize=9,
        color=colour,
    )


def _label_words(axis: Any) -> None:
    """Numbers of words on a logarithmic axis of matplotlib's."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())
