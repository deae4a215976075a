"""Positions of labels in a plot: none overlaps another one or leaves the axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

# Distances of a label from its point, in points (1/72 inch). A line joins the far ones.
NEAR = 5.0
DISTANCES = (NEAR, 12.0, 22.0, 34.0, 48.0, 64.0, 82.0, 102.0, 124.0)
# Directions of a label from its point, the preferred ones first.
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
# A label may lie across a marker or a line if the next free position is this much farther away.
DETOUR_FOR_MARKER = 60.0
DETOUR_FOR_LINE = 20.0


@dataclass(frozen=True)
class Box:
    """A rectangle in points, from (x0, y0) at the lower left to (x1, y1) at the upper right."""

    x0: float
    y0: float
    x1: float
    y1: float

    def overlaps(self, other: Box) -> bool:
        return (
            self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1
        )

    def contains(self, other: Box) -> bool:
        return (
            self.x0 <= other.x0
            and other.x1 <= self.x1
            and self.y0 <= other.y0
            and other.y1 <= self.y1
        )

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of the box that is nearest to (x, y)."""
        return min(max(x, self.x0), self.x1), min(max(y, self.y0), self.y1)


@dataclass
class LabelPlacer:
    """Places one label after another inside the axes.

    axes: area of the plot.
    markers: boxes that labels should not cover.
    lines: thin lines, such as error bars, that labels should not cross; each as a row of boxes.
    labels: boxes of the labels placed so far.
    """

    axes: Box
    markers: Sequence[Box] = ()
    lines: list[Sequence[Box]] = field(default_factory=list)
    labels: list[Box] = field(default_factory=list)

    def place(self, x: float, y: float, width: float, height: float) -> tuple[Box, bool]:
        """Choose the position of the label of a point.

        x, y: the point.
        width, height: size of the label.
        RETURNS: the box of the label, and whether it is so far away that it needs a line.
        """
        candidates = self._candidates(x, y, width, height)
        distance, box = min(candidates, key=lambda each: self._cost(each[0], each[1], x, y))
        self.labels.append(box)
        if distance > NEAR:
            self.lines.append(line_steps(x, y, *box.nearest(x, y)))
        return box, distance > NEAR

    def _candidates(
        self, x: float, y: float, width: float, height: float
    ) -> Iterator[tuple[float, Box]]:
        for distance, (right, up) in product(DISTANCES, DIRECTIONS):
            # The middle of the label, beside the point in one direction or in both.
            middle_x = x + right * (distance + width / 2)
            middle_y = y + up * (distance + height / 2)
            x0, y0 = middle_x - width / 2, middle_y - height / 2
            if up:
                # Above or below, a label may also slide along the axes that would cut it.
                x0 = max(self.axes.x0, min(x0, self.axes.x1 - width))
            yield distance, Box(x0, y0, x0 + width, y0 + height)

    def _cost(self, distance: float, box: Box, x: float, y: float) -> tuple[int, float]:
        forbidden = sum(map(box.overlaps, self.labels)) + (not self.axes.contains(box))
        covered = sum(map(box.overlaps, self.markers))
        crossed = sum(any(map(box.overlaps, line)) for line in self.lines)
        if distance > NEAR:
            steps = line_steps(x, y, *box.nearest(x, y))
            crossed += sum(any(map(label.overlaps, steps)) for label in self.labels)
        return forbidden, distance + DETOUR_FOR_MARKER * covered + DETOUR_FOR_LINE * crossed


def line_steps(x: float, y: float, to_x: float, to_y: float, *, n: int = 8) -> list[Box]:
    """A line as small boxes, of which the first is a step away from its start."""
    points = [(x + (to_x - x) * i / n, y + (to_y - y) * i / n) for i in range(1, n + 1)]
    return [Box(px - 0.5, py - 0.5, px + 0.5, py + 0.5) for px, py in points]
