from __future__ import annotations

import random
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from spacy_distil.report.label_placement import Box, LabelPlacer
from spacy_distil.report.plot import COLOURS, Panels, Point, find_best, make_score_figure
from spacy_distil.report.scores import COLUMNS
from spacy_distil.report.speed import Spread
from tests.report.pictures import colours_of

AXES = Box(0, 0, 200, 200)
NAMES = [
    "teacher",
    "3 layers, int8",
    "2 layers, int8",
    "CNN",
    "CNN, distilled",
    "spacy-transformers",
]


def label_boxes(figure: Any) -> list[tuple[Any, list[Any]]]:
    """The axes of each panel and the boxes of its labels, in pixels."""
    figure.canvas.draw()
    return [
        (axes.get_window_extent(), [label.get_window_extent() for label in axes.texts])
        for axes in figure.axes
    ]


def clustered_points(seed: int) -> list[Point]:
    """Points so close together that their labels cannot all lie beside them."""
    rng = random.Random(seed)
    points = []
    for name in NAMES:
        rate, score = rng.uniform(17_000, 20_000), rng.uniform(95.0, 95.3)
        interval = (score - 0.3, score + 0.2)
        points.append(Point(name, Spread(rate, rate * 0.97, rate * 1.02), score, interval))
    return points


def test_labels_of_clustered_points_do_not_overlap(tmp_path: Path) -> None:
    panels = {column: clustered_points(i) for i, column in enumerate(COLUMNS[:2])}
    figure = make_score_figure(panels, NAMES, title="A title")
    for area, boxes in label_boxes(figure):
        assert len(boxes) == len(NAMES)
        for one, other in combinations(boxes, 2):
            assert not one.overlaps(other)
        for box in boxes:
            assert area.x0 <= box.x0 < box.x1 <= area.x1
            assert area.y0 <= box.y0 < box.y1 <= area.y1
    # The file has the figure's resolution, which the labels were placed for.
    figure.savefig(tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == tuple(int(side) for side in figure.bbox.size)
    assert colours_of(tmp_path / "plot.png") >= set(COLOURS[: len(NAMES)])


def test_points_at_the_edges_have_their_labels_inside() -> None:
    points = [
        Point("a pipeline with a long name", Spread(9.0, 9.0, 9.0), 0.0),
        Point("another one", Spread(30_000.0, 30_000.0, 30_000.0), 100.0),
    ]
    figure = make_score_figure({COLUMNS[0]: points}, [point.name for point in points])
    ((area, boxes),) = label_boxes(figure)
    for box in boxes:
        assert area.x0 <= box.x0 < box.x1 <= area.x1
        assert area.y0 <= box.y0 < box.y1 <= area.y1


def test_names_are_no_formulas(tmp_path: Path) -> None:
    name = r"$\nothing$"
    point = Point(name, Spread(9.0, 9.0, 9.0), 50.0)
    figure = make_score_figure({COLUMNS[0]: [point]}, [name], title=name)
    figure.savefig(tmp_path / "plot.png")
    assert label_boxes(figure)


def test_a_label_alone_lies_beside_its_point() -> None:
    box, is_far = LabelPlacer(AXES).place(100, 100, 40, 10)
    assert not is_far
    assert (box.x0, box.x1) == (80, 120)
    assert 100 < box.y0 < 110


@pytest.mark.parametrize("n", [2, 9, 25])
def test_labels_of_one_point_surround_it(n: int) -> None:
    placer = LabelPlacer(AXES)
    places = [placer.place(100, 100, 30, 10) for _ in range(n)]
    assert placer.labels == [box for box, _ in places]
    assert not any(one.overlaps(other) for one, other in combinations(placer.labels, 2))
    assert all(AXES.contains(box) for box in placer.labels)
    # Near ones first.
    assert all(first <= second for (_, first), (_, second) in pairwise(places))
    assert places[-1][1] == (n > 8)


def test_labels_avoid_markers_and_lines() -> None:
    marker, line = Box(95, 105, 105, 120), Box(0, 92, 200, 93)
    box, is_far = LabelPlacer(AXES, [marker], [[line]]).place(100, 100, 40, 10)
    assert not is_far
    assert not box.overlaps(marker)
    assert not box.overlaps(line)


@pytest.mark.parametrize("seed", range(50))
def test_the_best_trade_offs_are_those_that_no_other_point_beats(seed: int) -> None:
    rng = random.Random(seed)
    # On a small grid, so that some are equal.
    points = []
    for i in range(rng.randint(1, 12)):
        rate, score = float(rng.randint(1, 6)), float(rng.randint(1, 6))
        points.append(Point(str(i), Spread(rate, rate, rate), score))

    def beats(one: Point, other: Point) -> bool:
        differences = (one.speed.median - other.speed.median, one.score - other.score)
        return min(differences) >= 0 and max(differences) > 0

    best = find_best(points)
    assert {point.name for point in best} == {
        point.name for point in points if not any(beats(other, point) for other in points)
    }
    assert [point.speed.median for point in best] == sorted(point.speed.median for point in best)


def test_a_line_joins_the_best_trade_offs() -> None:
    points = [
        Point("slow", Spread(1.0, 1.0, 1.0), 90.0),
        Point("beaten", Spread(2.0, 2.0, 2.0), 70.0),
        Point("fast", Spread(3.0, 3.0, 3.0), 80.0),
    ]
    panels = Panels({COLUMNS[0]: points, COLUMNS[1]: points}, {}, ["slow", "beaten", "fast"])
    figures = panels.draw_each()
    assert list(figures) == ["UPOS acc", "XPOS acc"]
    for figure in figures.values():
        (axes,) = figure.axes
        assert [[1.0, 3.0], [90.0, 80.0]] in [
            [list(line.get_xdata()), list(line.get_ydata())] for line in axes.lines
        ]
