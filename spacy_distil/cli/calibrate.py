"""`spacy distil calibrate`: make the probabilities of a pipeline believable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from spacy_distil.cli.app import distil_cli
from spacy_distil.cli.options import (
    BatchSize,
    Code,
    Force,
    PipelineOutput,
    ReportFile,
    TrainedPipeline,
)
from spacy_distil.errors import friendly_errors, require
from spacy_distil.pipelines import import_code


@distil_cli.command("calibrate", no_args_is_help=True)
def calibrate_cli(
    pipeline: TrainedPipeline,
    output: PipelineOutput,
    corpus: Annotated[
        Path,
        typer.Option(
            "--corpus",
            help="Annotated documents (.spacy) that the pipeline has not been trained on, such as "
            "the development documents.",
        ),
    ],
    test: Annotated[
        Path | None,
        typer.Option("--test", help="Other annotated documents to measure the result on."),
    ] = None,
    batch_size: BatchSize = 64,
    code: Code = None,
    report: ReportFile = None,
    page: Annotated[
        Path | None,
        typer.Option(
            "--page", help="HTML file for the table, reliability diagrams and coverage curves."
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Fit the probabilities of a pipeline to annotated documents.

    Each pipe gets a temperature, by which its scores are divided before they become probabilities.
    Its predictions stay the same. You can calibrate a quantized pipeline, too, and quantize a
    calibrated one.
    """
    with friendly_errors():
        import json

        from spacy_distil.runs.files import write_text
        from spacy_distil.runs.outputs import check_file
        from spacy_distil.trust.calibration import calibrate
        from spacy_distil.trust.calibration_table import to_text

        for file in (report, page):
            if file is not None:
                check_file(file)
        if page is not None:
            require("matplotlib", extra="report", purpose="The page of `distil calibrate`")
        import_code(code)
        result = calibrate(
            pipeline,
            output,
            corpus=corpus,
            test=test,
            batch_size=batch_size,
            force=force,
            log=msg.info,
        )
        if report is not None:
            write_text(report, json.dumps(result.to_dict(), indent=2) + "\n")
        if page is not None:
            from spacy_distil.report.page import write_page
            from spacy_distil.trust.calibration_page import make_page

            write_page(make_page(result, measured_on=test or corpus, pipeline=pipeline), page)
            msg.good(f"Saved {page}")
    print(to_text(result, tested=test is not None))
    for name, reason in result.skipped.items():
        msg.info(f"{name!r} stays as it is: {reason}")
    for warning in result.warnings:
        msg.warn(warning)
    msg.good(f"Saved the pipeline to {output}")
