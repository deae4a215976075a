"""The results of `calibrate` as an HTML page."""

from __future__ import annotations

from pathlib import Path

from spacy_distil.report.machine import command_line
from spacy_distil.report.page import Commands, Page, Prose, Warnings
from spacy_distil.report.reliability.figures import make_figures
from spacy_distil.trust.calibration import Calibration
from spacy_distil.trust.calibration_table import ABOUT, make_table


def make_page(result: Calibration, *, measured_on: Path, pipeline: str) -> Page:
    """Make the page: table, reliability diagrams, curves of accuracy by coverage.

    measured_on: the documents behind the table.
    pipeline: path or package of the calibrated pipeline.
    """
    plots = make_figures({o.pipe: {"before": o.before, "after": o.after} for o in result.pipes})
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
