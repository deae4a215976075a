"""Measure how far the probabilities of pipelines can be believed, before and after calibration.

    python -m benchmarks.calibration DEV.spacy TEST.spacy --pipeline NAME=DIR [...] --output DIR

Each pipeline is calibrated on the development documents by `spacy_distil.calibrate`, and measured
on the test documents.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from wasabi import msg

from benchmarks.common.options import OptionalOutput, Stem
from benchmarks.common.results import report_results, timestamp
from benchmarks.pipeline_distillation.accuracy import group
from spacy_distil.errors import friendly_errors
from spacy_distil.report.reliability import table
from spacy_distil.report.reliability.measures import Reliability
from spacy_distil.tables import Table
from spacy_distil.trust.calibration import Calibration, calibrate
from spacy_distil.trust.calibration_table import ABOUT


def make_tables(results: dict[str, Calibration]) -> list[Table]:
    """Make a table for each pipe, with two rows for each pipeline."""
    pipes = {own.pipe: own for result in results.values() for own in result.pipes}
    tables = []
    for pipe, any_own in pipes.items():
        rows = []
        for name, result in results.items():
            for own in result.pipes:
                if own.pipe == pipe:
                    rows.append([name, "before", *_cells(own.before)])
                    rows.append(["", "after", *_cells(own.after)])
        of = f"{any_own.before.n:,} {any_own.before.what}"
        header = ["pipeline", "", "accuracy, %", "confidence, %", *table.HEADER]
        tables.append(Table(f"{pipe}: {of}", header, rows))
    return tables


def _cells(found: Reliability) -> list[str]:
    shares = (found.accuracy, found.confidence)
    return [*(f"{100 * share:.2f}" for share in shares), *table.make_cells(found)]


def main(
    dev: Annotated[Path, typer.Argument(metavar="DEV.spacy", help="Documents to calibrate on")],
    test: Annotated[Path, typer.Argument(metavar="TEST.spacy", help="Documents to measure on")],
    pipeline: Annotated[list[str], typer.Option(metavar="NAME=DIR", help="A trained pipeline")],
    output: OptionalOutput = None,
    stem: Stem = "calibration",
) -> None:
    """Calibrate and measure all pipelines, print the tables and save them."""
    date = timestamp()
    results: dict[str, Calibration] = {}
    with friendly_errors(), TemporaryDirectory() as directory:
        for i, (name, (path, *_)) in enumerate(group(pipeline).items()):
            msg.text(f"Calibrating {name}")
            out = Path(directory) / str(i)
            results[name] = calibrate(path, out, corpus=dev, test=test)
    data = {name: asdict(result) for name, result in results.items()}
    report_results(
        [*make_tables(results), ABOUT], {"pipelines": data}, output=output, stem=stem, date=date
    )


if __name__ == "__main__":
    typer.run(main)
