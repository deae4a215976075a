"""Reliability diagrams and curves of accuracy by coverage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spacy_distil.report.page import Figures
from spacy_distil.report.plot import COLOURS, make_figure
from spacy_distil.report.reliability.measures import Reliability

_NOTE = (
    "Left: the accuracy of predictions of similar probability. On the diagonal, probabilities can "
    "be believed; below it, the pipe is too sure. The area of a dot shows how many predictions "
    "there are. Right: the accuracy of the most probable predictions, if the others are checked by "
    "hand."
)


def make_figures(pipes: Mapping[str, Mapping[str, Reliability]]) -> list[Figures]:
    """Make a figure for each pipe. pipes: what is compared, by its name, by name of the pipe."""
    return [
        Figures(
            f"Reliability of {pipe}",
            {f"Reliability and coverage of {pipe}": draw(compared)},
            "" if i else _NOTE,
        )
        for i, (pipe, compared) in enumerate(pipes.items())
    ]


def draw(compared: Mapping[str, Reliability]) -> Any:
    """Plot accuracy by probability, and accuracy by coverage.

    RETURNS: a figure of matplotlib.
    """
    figure, (left, right) = make_figure(2, title="")
    left.plot([0, 1], [0, 1], linewidth=0.8, linestyle="--", color="0.5")
    for i, (name, found) in enumerate(compared.items()):
        colour = COLOURS[i % len(COLOURS)]
        confidence = [each.confidence for each in found.bins]
        accuracy = [each.accuracy for each in found.bins]
        sizes = [8 + 120 * each.n / max(1, found.n) for each in found.bins]
        left.plot(confidence, accuracy, color=colour, linewidth=1, label=name)
        left.scatter(confidence, accuracy, s=sizes, color=colour)
        shares, hits = [a for a, _ in found.coverage], [b for _, b in found.coverage]
        right.plot(shares, hits, color=colour, linewidth=1.2, label=name)
    for axes, x in ((left, "probability"), (right, "share of the predictions")):
        axes.set_xlabel(x, fontsize=9)
        axes.set_ylabel("accuracy", fontsize=9)
        axes.legend(fontsize=8, frameon=False)
    left.set_title("Reliability", fontsize=10)
    right.set_title("Accuracy by coverage", fontsize=10)
    return figure
