"""How far probabilities can be believed, as columns of tables."""

from __future__ import annotations

from collections.abc import Mapping

from spacy_distil.report.layout import MISSING
from spacy_distil.report.means import MeanScore
from spacy_distil.report.reliability.measures import N_BINS, Reliability
from spacy_distil.tables import Table

HEADER = ["ECE, %", "by chance, %", "adaptive ECE, %", "Brier score", "log loss"]
ABOUT = (
    f"ECE: expected calibration error in {N_BINS} bins of equal width; by chance: the ECE that "
    "true probabilities would have on so few predictions; adaptive: in bins of as many "
    "predictions. Lower is better for ECE, Brier score and log loss; brackets hold the 95 % "
    "bootstrap interval over documents."
)


def make_table(pipelines: Mapping[str, Mapping[str, Reliability]]) -> Table:
    """Make a table with a row for each pipe of each pipeline, pipes of one name together.

    pipelines: reliability by name of the pipe, by name of the pipeline.
    """
    pipes = {pipe: own.what for found in pipelines.values() for pipe, own in found.items()}
    rows = []
    for pipe, what in pipes.items():
        for name, found in pipelines.items():
            own = found.get(pipe)
            n = MISSING if own is None else f"{own.n:,} {what}"
            rows.append([pipe, name, n, *make_cells(own)])
    return Table("Calibration", ["pipe", "pipeline", "of", *HEADER], rows)


def make_cells(found: Reliability | None) -> list[str]:
    """Format what `HEADER` names; `None` is a missing value."""
    if found is None:
        return [MISSING] * len(HEADER)
    return [
        _cell(found.ece, 2, 100),
        f"{100 * found.ece_by_chance:.2f}",
        _cell(found.adaptive_ece, 2, 100),
        _cell(found.brier, 4),
        _cell(found.log_loss, 4),
    ]


def _cell(score: MeanScore, decimals: int, factor: float = 1) -> str:
    def show(value: float) -> str:
        return f"{factor * value:.{decimals}f}"

    std = "" if score.std is None else f" ± {show(score.std)}"
    interval = "" if score.interval is None else f" [{', '.join(map(show, score.interval))}]"
    return f"{show(score.mean)}{std}{interval}"
