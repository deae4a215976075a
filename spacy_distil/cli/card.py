"""`spacy distil card`: write the model card of a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from spacy_distil.cli.app import distil_cli
from spacy_distil.errors import friendly_errors


@distil_cli.command("card", no_args_is_help=True)
def card_cli(
    pipeline: Annotated[
        Path, typer.Argument(metavar="PIPELINE", help="Directory of a saved pipeline.")
    ],
    compare: Annotated[
        Path | None,
        typer.Option("--compare", help="Output of `distil compare`: scores, speed and size."),
    ] = None,
    robustness: Annotated[
        Path | None, typer.Option("--robustness", help="Output of `distil robustness`.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="JSON file of `distil calibrate --report`."),
    ] = None,
    row: Annotated[
        str, typer.Option("--row", help="Name of the pipeline in these results.")
    ] = "student",
    licence: Annotated[
        str, typer.Option("--licence", help="Licence for the card and meta.json, such as mit.")
    ] = "",
    use: Annotated[
        str, typer.Option("--use", help="Paragraph on what the pipeline is meant for.")
    ] = "",
    limits: Annotated[str, typer.Option("--limits", help="Paragraph on where it fails.")] = "",
    force: Annotated[
        bool, typer.Option("--force", "-F", help="Replace a README.md that is there.")
    ] = False,
) -> None:
    """Write README.md into a pipeline: its origin, scores, calibration, robustness and limits.

    `spacy package` takes it over, and the Hugging Face hub reads its metadata. The card says what
    has not been measured.
    """
    with friendly_errors():
        from spacy_distil.report.pipeline_card import CardRecords, read_results, write_card

        records = CardRecords(
            comparison=None if compare is None else read_results(compare, "compare"),
            robustness=None if robustness is None else read_results(robustness, "robustness"),
            calibration=None if calibration is None else read_results(calibration, "calibrate"),
            row=row,
        )
        path = write_card(pipeline, records, licence=licence, use=use, limits=limits, force=force)
    msg.good(f"Wrote {path}")
