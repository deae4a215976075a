"""The results of `calibrate` as a table."""

from __future__ import annotations

from spacy_distil.report.reliability import table
from spacy_distil.report.reliability.measures import Reliability
from spacy_distil.tables import Table
from spacy_distil.trust.calibration import Calibration

ABOUT = (
    "Accuracy and confidence (the mean probability of the predictions) should be alike. "
    + table.ABOUT
)


def make_table(result: Calibration) -> Table:
    """One row for each pipe before, and one after."""
    rows = []
    for own in result.pipes:
        ts = own.temperatures
        temperature = f"{ts[0]:.2f}" if len(ts) == 1 else f"{min(ts):.2f} to {max(ts):.2f}"
        of = f"{own.before.n:,} {own.before.what}"
        rows.append([own.pipe, of, "before", "", *_cells(own.before)])
        rows.append(["", "", "after", temperature, *_cells(own.after)])
    header = ["pipe", "of", "", "temperature", "accuracy, %", "confidence, %", *table.HEADER]
    return Table("Calibration", header, rows)


def _cells(found: Reliability) -> list[str]:
    shares = (found.accuracy, found.confidence)
    return [*(f"{100 * share:.2f}" for share in shares), *table.make_cells(found)]


def to_text(result: Calibration, *, tested: bool) -> str:
    """Format for the terminal. tested: whether other documents were measured than fitted."""
    about = ABOUT
    if not tested:
        about += " Measured on the documents that the temperatures were fitted on: add --test."
    return f"{make_table(result).to_text()}\n{about}"
