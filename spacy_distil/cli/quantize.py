"""`spacy distil quantize`: make a trained pipeline run without torch."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, cast

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
    TxtDocumentsChoice,
    TxtDocumentsOption,
)
from spacy_distil.errors import friendly_errors, require
from spacy_distil.pipelines import import_code

_FEW = "Checked on a few sentences alone: name documents of yours with --corpus."


class Precision(str, Enum):
    """Precision of the products with weights."""

    int8 = "int8"
    fp32 = "fp32"


@distil_cli.command("quantize", no_args_is_help=True)
def quantize_cli(
    pipeline: TrainedPipeline,
    output: PipelineOutput,
    precision: Annotated[
        Precision,
        typer.Option("--precision", "-p", help="int8, or fp32 for the same numbers without torch."),
    ] = Precision.int8,
    corpus: Annotated[
        Path | None,
        typer.Option(
            "--corpus",
            help="Documents to check the result on: .spacy (annotated ones are scored), .txt or "
            ".jsonl. If int8 loses too much, they decide which layers stay "
            "in float32. Default: a few sentences that come with spaCy.",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", help="Check the first N documents only; 0 for all.")
    ] = 0,
    min_agreement: Annotated[
        float,
        typer.Option(
            "--min-agreement",
            help="Write nothing if a smaller share of a pipe's predictions agrees (0 to 1).",
        ),
    ] = 0.95,
    max_fp32_layers: Annotated[
        int | None,
        typer.Option(
            "--max-fp32-layers",
            min=0,
            help="Most layers of an encoder that may stay in float32, to reach --min-agreement. "
            "Default: half.",
        ),
    ] = None,
    reduced_range: Annotated[
        bool,
        typer.Option(
            "--reduced-range",
            help="Use 7-bit weights. On CPUs without VNNI, 8-bit ones can saturate.",
        ),
    ] = False,
    embedding_bits: Annotated[
        int,
        typer.Option(
            "--embedding-bits",
            help="Bits of the numbers in the embeddings of pieces: 8, or 4 for half of their size.",
        ),
    ] = 8,
    prune_vocab: Annotated[
        Path | None,
        typer.Option(
            "--prune-vocab",
            help="Drop the pieces that do not occur in these documents (.spacy, .txt, .jsonl).",
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option("--vocab-size", min=1, help="With --prune-vocab: keep this number of pieces."),
    ] = None,
    txt_documents: TxtDocumentsOption = TxtDocumentsChoice.auto,
    batch_size: BatchSize = 64,
    code: Code = None,
    report: ReportFile = None,
    page: Annotated[
        Path | None,
        typer.Option("--page", help="HTML file for the tables and a plot of the layers."),
    ] = None,
    force: Force = False,
) -> None:
    """Make a pipeline that runs on ONNX Runtime: several times faster on a CPU, without torch.

    The command turns every encoder of the pipeline into an ONNX graph. The other components stay as
    they are. By default, matrix products and embeddings are in int8. Activations are rounded piece
    by piece, so predictions for a document do not depend on the other documents in its batch.

    The command compares the result with the original on documents, and writes it only if they
    agree. The encoder's config.json names the CPU that the check ran on.
    """
    with friendly_errors():
        from spacy_distil.runs.files import write_text
        from spacy_distil.runs.outputs import check_file

        for file in (report, page):
            if file is not None:
                check_file(file)
        if page is not None:
            require("matplotlib", extra="report", purpose="The page of `distil quantize`")
        from spacy_distil.export.quantize import quantize
        from spacy_distil.export.quantize_table import to_text

        import_code(code)
        result = quantize(
            pipeline,
            output,
            precision=precision.value,
            corpus=corpus,
            limit=limit,
            min_agreement=min_agreement,
            max_fp32_layers=max_fp32_layers,
            reduced_range=reduced_range,
            embedding_bits=cast(Literal[8, 4], embedding_bits),  # which `quantize` checks
            prune_vocab=prune_vocab,
            vocab_size=vocab_size,
            txt_documents=txt_documents.value,
            batch_size=batch_size,
            force=force,
            log=msg.info,
        )
        if report is not None:
            write_text(report, json.dumps(result.to_dict(), indent=2) + "\n")
        warnings = [] if corpus else [_FEW]
        if page is not None:
            from spacy_distil.export.quantize_page import make_page
            from spacy_distil.report.page import write_page

            write_page(make_page(result, pipeline=pipeline, warnings=warnings), page)
            msg.good(f"Saved {page}")
    print(to_text(result))
    for warning in warnings:
        msg.warn(warning)
    msg.good(f"Saved the pipeline to {output}")
