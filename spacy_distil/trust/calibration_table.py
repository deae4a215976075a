"""The results of `calibrate` as a table."""

from __future__ import annotations

from spacy_distil.tables import Table
from spacy_distil.trust.calibration import Calibration
from spacy_distil.trust.reliability import N_BINS, Reliability

ABOUT = (
    "Accuracy and confidence (the mean probability of the predictions) should be alike. ECE: "
    f"expected calibration error in {N_BINS} bins of equal width; by chance: the ECE that true "
    "probabilities would have on so few predictions; adaptive: in bins of as many predictions. "
    "Lower is better for ECE, Brier score and log loss."
)


def make_table(result: Calibration) -> Table:
    """One row for each pipe before, and one after."""
    rows = []
    for own in result.pipes:
        ts = own.temperatures
        temperature = f"{ts[0]:.2f}" if len(ts) == 1 else f"{min(ts):.2f} to {max(ts):.2f}"
        rows.append([own.pipe, f"{own.before.n:,} {own.what}", "before", "", *_cells(own.before)])
        rows.append(["", "", "after", temperature, *_cells(own.after)])
    header = ["pipe", "of", "", "temperature", "accuracy, %", "confidence, %", "ECE, %"]
    return Table(
        "Calibration", [*header, "by chance, %", "adaptive ECE, %", "Brier score", "log loss"], rows
    )


def _cells(found: Reliability) -> list[str]:
    shares = (found.accuracy, found.confidence, found.ece, found.ece_by_chance, found.adaptive_ece)
    return [
        *(f"{100 * share:.2f}" for share in shares),
        f"{found.brier:.4f}",
        f"{found.log_loss:.4f}",
    ]


def to_text(result: Calibration, *, tested: bool) -> str:
    """Format for the terminal. tested: whether other documents were measured than fitted."""
    about = ABOUT
    if not tested:
        about += " Measured on the documents that the temperatures were fitted on: add --test."
    return f"{make_table(result).to_text()}\n{about}"
