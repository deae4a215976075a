"""The results of `calibrate` as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spacy_distil.report.machine import command_line
from spacy_distil.report.page import Block, Commands, Figures, Page, Prose, Warnings
from spacy_distil.report.plot import COLOURS, make_figure
from spacy_distil.trust.calibration import Calibration, PipeCalibration
from spacy_distil.trust.calibration_table import ABOUT, make_table

_NOTE = (
    "Left: the accuracy of predictions of similar probability. On the diagonal, probabilities can "
    "be believed; below it, the pipe is too sure. The area of a dot shows how many predictions "
    "there are. Right: the accuracy of the most probable predictions, if the others are checked by "
    "hand."
)


def make_page(result: Calibration, *, measured_on: Path, pipeline: str) -> Page:
    """Make the page: table, reliability diagrams, curves of accuracy by coverage.

    measured_on: the documents behind the table.
    pipeline: path or package of the calibrated pipeline.
    """
    plots: list[Block] = [
        Figures(
            own.pipe,
            {f"Reliability and coverage of {own.pipe}": make_reliability_figure(own)},
            _NOTE if i == 0 else "",
        )
        for i, own in enumerate(result.pipes)
    ]
    skipped = [f"{name!r} stays as it is: {reason}." for name, reason in result.skipped.items()]
    return Page(
        title=f"Calibration of {Path(pipeline).name}",
        lead=f"Measured on {measured_on}.",
        blocks=[
            Warnings(result.warnings),
            make_table(result),
            *plots,
            Prose("How this was measured", "\n\n".join([ABOUT, *skipped])),
            Commands([command_line()]),
        ],
    )


def make_reliability_figure(own: PipeCalibration) -> Any:
    """Plot accuracy by probability, and accuracy by coverage, before and after.

    RETURNS: a figure of matplotlib.
    """
    figure, (left, right) = make_figure(2, title="")
    left.plot([0, 1], [0, 1], linewidth=0.8, linestyle="--", color="0.5")
    for name, found, colour in (
        ("before", own.before, COLOURS[1]),
        ("after", own.after, COLOURS[0]),
    ):
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
