"""`spacy distil convert`: make a pipeline of ours from a spacy-transformers pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from spacy_distil.cli.app import distil_cli
from spacy_distil.cli.options import (
    BatchSize,
    Force,
    PipelineOutput,
    TxtDocumentsChoice,
    TxtDocumentsOption,
)
from spacy_distil.errors import friendly_errors


@distil_cli.command("convert", no_args_is_help=True)
def convert_cli(
    pipeline: Annotated[
        str,
        typer.Argument(
            metavar="PIPELINE", help="Trained spacy-transformers pipeline: directory or package."
        ),
    ],
    output: PipelineOutput,
    corpus: Annotated[
        Path | None,
        typer.Option(
            "--corpus",
            "-c",
            help="Documents to compare both pipelines on: .spacy (annotated ones are scored), .txt "
            "or .jsonl. Default: a few sentences.",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", help="Compare the first N documents only; 0 for all.")
    ] = 0,
    min_agreement: Annotated[
        float,
        typer.Option(
            "--min-agreement",
            help="Write nothing if the predictions of a pipe agree less (0 to 1), in documents "
            "that both pipelines encode in the same windows.",
        ),
    ] = 0.98,
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            help="Most pieces encoded together. Default: as close as possible to the windows that "
            "the pipeline was trained with.",
        ),
    ] = None,
    private_copies: Annotated[
        bool,
        typer.Option(
            "--private-copies/--no-private-copies",
            help="If a pipe pools pieces differently from the other pipes: give it its own copy of "
            "the encoder, or refuse the conversion.",
        ),
    ] = True,
    txt_documents: TxtDocumentsOption = TxtDocumentsChoice.auto,
    batch_size: BatchSize = 64,
    force: Force = False,
) -> None:
    """Convert a spacy-transformers pipeline: the same weights and pipes, on a distil_transformer.

    The component "transformer" becomes a "distil_transformer" of the same name, and its listeners
    become ours. Every other component stays as it is. The converted pipeline is faster, needs no
    spacy-transformers, and can be quantized.

    Predictions are the same if both pipelines encode the same windows. That is so for documents
    that fit into one window of the original: with strided_spans, up to `window` tokens, and 1.5
    times as many pieces; with doc_spans, as many pieces as the encoder takes; with sent_spans, one
    sentence. The new pipeline splits longer documents at other places, and truncates nothing.
    Measure the difference on your own documents with --corpus.

    If something cannot be converted, the command names it and writes nothing.
    """
    with friendly_errors():
        from spacy_distil.export.convert import convert

        conversion = convert(
            pipeline,
            output,
            corpus=corpus,
            limit=limit,
            window=window,
            private_copies=private_copies,
            min_agreement=min_agreement,
            txt_documents=txt_documents.value,
            batch_size=batch_size,
            force=force,
            log=msg.info,
        )
        from spacy_distil.export.conversion_check import to_text

    print(to_text(conversion.comparison))
    for note in conversion.notes:
        msg.warn(f"{note}.")
    if corpus is None:
        msg.warn("Nothing was compared on text of yours: name some with --corpus.")
    msg.good(f"Saved the converted pipeline to {output}")
