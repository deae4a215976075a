"""Plots: accuracy against speed with a panel for each task, and speed by batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from spacy_distil.errors import require
from spacy_distil.report.label_placement import Box, LabelPlacer, line_steps
from spacy_distil.report.means import MeanScore
from spacy_distil.report.results import Benchmark, Comparison
from spacy_distil.report.scores import COLUMNS, Column
from spacy_distil.report.speed import Spread
from spacy_distil.runs.files import atomic_file

# The colours of Okabe and Ito, which colour-blind people can tell apart, darkest first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_PANEL = (3.6, 3.2)  # inches
_PER_LINE = 2
_DPI = 160
_MARKER = 6  # points, as the next one
_PADDING = 2  # between axes and labels
_TRADE_OFFS = "0.5"  # a grey for light and dark backgrounds


@dataclass(frozen=True)
class Point:
    """One pipeline in one panel.

    speed: words/s.
    score: in %.
    interval: of the score over documents; `None` for none.
    seeds: score of each seed; empty for a single one.
    """

    name: str
    speed: Spread
    score: float
    interval: tuple[float, float] | None = None
    seeds: Sequence[float] = ()

    @property
    def bars(self) -> tuple[float, float]:
        """Lower and upper end of the interval. A bootstrap interval may exclude the score."""
        low, high = self.interval or (self.score, self.score)
        return min(low, self.score), max(high, self.score)


@dataclass(frozen=True)
class Line:
    """Words/s of one pipeline by batch size."""

    name: str
    speeds: Mapping[int, Spread]


@dataclass(frozen=True)
class Panels:
    """What a plot shows, before it is drawn.

    scores: points of each task; if there are none, `speeds` counts.
    speeds: lines by their heading.
    names: of the pipelines, in the order of their colours.
    """

    scores: Mapping[Column, Sequence[Point]]
    speeds: Mapping[str, Sequence[Line]]
    names: Sequence[str]

    def draw(self, *, title: str = "") -> Any:
        """Draw all panels. RETURNS: a figure of matplotlib."""
        if self.scores:
            return make_score_figure(self.scores, self.names, title=title)
        return make_speed_figure(self.speeds, self.names, title=title)

    def draw_each(self) -> dict[str, Any]:
        """Draw each panel as a figure of its own, by heading."""
        if self.scores:
            return {
                column.title: make_score_figure({column: points}, self.names)
                for column, points in self.scores.items()
            }
        return {
            heading: make_speed_figure({heading: lines}, self.names)
            for heading, lines in self.speeds.items()
        }


def comparison_panels(comparison: Comparison) -> Panels:
    """Accuracy against speed."""
    batch_size = comparison.settings.batch_size
    return _panels(
        {row.name: (row.speed.words_per_second(batch_size), row.scores) for row in comparison.rows}
    )


def benchmark_panels(benchmark: Benchmark) -> Panels:
    """Accuracy against speed, for the largest number of threads and the largest batches.

    Without scores it is speed by batch size.
    """
    threads, batch_size = max(benchmark.settings.threads), max(benchmark.settings.batch_sizes)
    speeds = {
        f"threads: {n}": [
            Line(row.name, {size: speed.words_per_second(size) for size in speed.batch_sizes})
            for row in benchmark.rows
            for speed in [row.speeds[n]]
        ]
        for n in benchmark.settings.threads
    }
    return _panels(
        {
            row.name: (row.speeds[threads].words_per_second(batch_size), row.scores)
            for row in benchmark.rows
        },
        speeds,
    )


def save_plot(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib to a PNG file."""
    with atomic_file(path) as unfinished:
        figure.savefig(unfinished)


def _panels(
    pipelines: Mapping[str, tuple[Spread, Mapping[str, MeanScore]]],
    speeds: Mapping[str, Sequence[Line]] | None = None,
) -> Panels:
    """pipelines: words/s and scores of each, by its name."""
    scores = {}
    for column in COLUMNS:
        points = [
            _point(name, speed, scores_of[column.key])
            for name, (speed, scores_of) in pipelines.items()
            if column.key in scores_of
        ]
        if column.is_task and points:
            scores[column] = points
    return Panels(scores, speeds or {}, list(pipelines))


def _point(name: str, speed: Spread, score: MeanScore) -> Point:
    interval = score.interval
    return Point(
        name=name,
        speed=speed,
        score=score.mean * 100,
        interval=None if interval is None else (interval[0] * 100, interval[1] * 100),
        seeds=[value * 100 for value in score.seeds] if len(score.seeds) > 1 else [],
    )


def make_score_figure(
    panels: Mapping[Column, Sequence[Point]], names: Sequence[str], *, title: str = ""
) -> Any:
    """Plot accuracy against speed, with a panel for each task.

    Bars are the intervals over documents and the spread of the rounds. Small dots are seeds. A line
    joins the best trade-offs, see `find_best`.

    names: of the pipelines, in the order of their colours.
    RETURNS: a figure of matplotlib.
    """
    return _draw_panels({column.title: p for column, p in panels.items()}, names, title=title)


def _draw_panels(panels: Mapping[str, Sequence[Point]], names: Sequence[str], *, title: str) -> Any:
    speeds = [point.speed for points in panels.values() for point in points]
    figure, grid = make_figure(len(panels), title=title)
    for axes, (heading, points) in zip(grid, panels.items(), strict=False):
        best = find_best(points)
        axes.plot(
            [point.speed.median for point in best],
            [point.score for point in best],
            color=_TRADE_OFFS,
            linewidth=0.8,
            zorder=1,
        )
        for point in points:
            _draw_point(axes, point, colour_of(point.name, names))
        axes.set_xscale("log")
        axes.margins(y=0.15)
        # With room for names on the right.
        axes.set_xlim(min(one.min for one in speeds) / 1.4, max(one.max for one in speeds) * 2)
        _label_words(axes.xaxis)
        axes.set_title(heading, fontsize=10)
        axes.set_xlabel("words/s, CPU", fontsize=9)
        axes.set_ylabel("%", fontsize=9)
    # The names need axes that stay where they are.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, points in zip(grid, panels.values(), strict=False):
        _label_points(axes, points, [colour_of(point.name, names) for point in points])
    return figure


def make_trade_off_figure(points: Sequence[Point], *, y: str = "score, %") -> Any:
    """Plot scores against words/s in one panel, as `make_score_figure` does."""
    return _draw_panels({y: points}, [point.name for point in points], title="")


def find_best(points: Sequence[Point]) -> list[Point]:
    """Find the best trade-offs, slowest first: no other point is better in score or speed, and at
    least as good in the other one (Pareto front).
    """
    best: list[Point] = []
    # The fastest first, and of equally fast ones the most accurate.
    for point in sorted(points, key=lambda one: (-one.speed.median, -one.score)):
        if not best or point.score > best[-1].score or _at_same_place(point, best[-1]):
            best.append(point)
    return best[::-1]


def _at_same_place(one: Point, other: Point) -> bool:
    return (one.speed.median, one.score) == (other.speed.median, other.score)


def make_speed_figure(
    panels: Mapping[str, Sequence[Line]], names: Sequence[str], *, title: str = ""
) -> Any:
    """Plot words/s by batch size, with a panel for each title in `panels`.

    names: of the pipelines, in the order of their colours.
    RETURNS: a figure of matplotlib.
    """
    figure, grid = make_figure(len(panels), title=title)
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
                color=colour_of(line.name, names),
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
    return figure


def make_figure(n: int, *, title: str) -> tuple[Any, Any]:
    """Make a figure with `n` panels. RETURNS: the figure, and its axes."""
    require("matplotlib", extra="report", purpose="The plot")
    # Not pyplot, which has global state and needs a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_wide = min(_PER_LINE, max(1, n))
    n_high = -(-max(1, n) // n_wide)
    size = (_PANEL[0] * n_wide, _PANEL[1] * n_high)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(n_high, n_wide, squeeze=False).flatten()
    for axes in grid[:n]:
        axes.tick_params(labelsize=8)
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[n:]:
        axes.set_axis_off()
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return figure, grid


def colour_of(name: str, names: Sequence[str]) -> str:
    return COLOURS[names.index(name) % len(COLOURS)]


def _draw_point(axes: Any, point: Point, colour: str) -> None:
    """axes: matplotlib's Axes."""
    x, y = point.speed.median, point.score
    low, high = point.bars
    axes.errorbar(
        x,
        y,
        xerr=[[x - point.speed.min], [point.speed.max - x]],
        yerr=[[y - low], [high - y]],
        fmt="o",
        color=colour,
        markersize=_MARKER,
        elinewidth=1,
    )
    axes.plot(
        [x] * len(point.seeds),
        point.seeds,
        "o",
        color=colour,
        markersize=_MARKER / 2,
        markerfacecolor="white",
        zorder=3,
    )


def _label_points(axes: Any, points: Sequence[Point], colours: Sequence[str]) -> None:
    """Write the names of the points beside them, in axes whose layout is final."""
    from matplotlib.lines import Line2D

    pixels = axes.figure.dpi / 72  # for each point of 1/72 inch

    def place(x: float, y: float) -> tuple[float, float]:
        """Data to points of 1/72 inch."""
        left, up = axes.transData.transform((x, y)) / pixels
        return float(left), float(up)

    def box(x0: float, y0: float, x1: float, y1: float, margin: float) -> Box:
        """A rectangle of data, with a margin in points."""
        (left, low), (right, high) = place(x0, y0), place(x1, y1)
        return Box(left - margin, low - margin, right + margin, high + margin)

    area = axes.get_window_extent()
    markers: list[Box] = []
    lines: list[Sequence[Box]] = []
    for point in points:
        x, (low, high) = point.speed.median, point.bars
        markers += [box(x, y, x, y, _MARKER / 2) for y in (point.score, *point.seeds)]
        lines += [
            [box(point.speed.min, point.score, point.speed.max, point.score, 0.5)],
            [box(x, low, x, high, 0.5)],
        ]
    for one, other in pairwise(find_best(points)):
        start, end = place(one.speed.median, one.score), place(other.speed.median, other.score)
        lines.append(line_steps(*start, *end, n=40))
    inside = Box(
        area.x0 / pixels + _PADDING,
        area.y0 / pixels + _PADDING,
        area.x1 / pixels - _PADDING,
        area.y1 / pixels - _PADDING,
    )
    placer = LabelPlacer(inside, markers, lines)
    for point, colour in zip(points, colours, strict=True):
        x, y = place(point.speed.median, point.score)
        label = axes.annotate(
            point.name,
            (point.speed.median, point.score),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=9,
            color=colour,
            parse_math=False,
        )
        extent = label.get_window_extent()
        chosen, is_far = placer.place(x, y, extent.width / pixels, extent.height / pixels)
        label.xyann = (chosen.x0 - extent.x0 / pixels, chosen.y0 - extent.y0 / pixels)
        if is_far:
            end_x, end_y = chosen.nearest(x, y)
            line = Line2D(
                [x / 72, end_x / 72],
                [y / 72, end_y / 72],
                transform=axes.figure.dpi_scale_trans,  # inches: an SVG has other pixels
                color=colour,
                linewidth=0.6,
            )
            axes.add_artist(line)


def _label_words(axis: Any) -> None:
    """Write the ticks of a logarithmic axis as numbers of words."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())
