"""`spacy distil convert`: make a pipeline of ours from a spacy-transformers pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from wasabi import msg

from spacy_distil.cli.app import distil_cli
from spacy_distil.cli.options import (
    BatchSize,
    Code,
    Force,
    PipelineOutput,
    TxtDocumentsChoice,
    TxtDocumentsOption,
)
from spacy_distil.errors import friendly_errors
from spacy_distil.pipelines import import_code


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
    trf_data: Annotated[
        bool,
        typer.Option(
            "--trf-data",
            help="Set doc._.trf_data, as the original does. Documents take more memory.",
        ),
    ] = False,
    quantize: Annotated[
        bool,
        typer.Option(
            "--quantize",
            help="Then quantize the pipeline to int8, as 'spacy distil quantize' does by default.",
        ),
    ] = False,
    batch_size: BatchSize = 64,
    code: Code = None,
    force: Force = False,
) -> None:
    """Convert a pipeline of spacy-transformers or spacy-curated-transformers, such as
    en_core_web_trf: the same weights and pipes, on a distil_transformer.

    The component "transformer" or "curated_transformer" becomes a "distil_transformer" of the same
    name, and its listeners become ours. Every other component stays as it is. The converted
    pipeline is faster, needs neither package, and can be quantized.

    Predictions are the same if both pipelines encode the same windows. That is so for documents
    that fit into one window of the original: with strided_spans, up to `window` tokens, and 1.5
    times as many pieces; with doc_spans, as many pieces as the encoder takes; with sent_spans, one
    sentence; with WithStridedSpans, up to `stride` pieces. The new pipeline splits longer documents
    at other places, and truncates nothing. Measure the difference on your own documents with
    --corpus.

    With --quantize, OUT gets the int8 pipeline alone, and only if both steps succeed.

    If something cannot be converted, the command names it and writes nothing.
    """
    with friendly_errors():
        from spacy_distil.export.convert import TRF_DATA, convert, convert_and_quantize

        import_code(code)
        settings: dict[str, Any] = {
            "corpus": corpus,
            "limit": limit,
            "window": window,
            "private_copies": private_copies,
            "trf_data": trf_data,
            "txt_documents": txt_documents.value,
            "min_agreement": min_agreement,
            "batch_size": batch_size,
            "force": force,
            "log": msg.info,
        }
        quantization = None
        if quantize:
            conversion, quantization = convert_and_quantize(pipeline, output, **settings)
        else:
            conversion = convert(pipeline, output, **settings)
        from spacy_distil.export import conversion_check, quantize_table

    print(conversion_check.to_text(conversion.comparison))
    if quantization is not None:
        print(f"\n== Quantized ==\n\n{quantize_table.to_text(quantization)}")
    for note in conversion.notes:
        msg.warn(f"{note}.")
    if conversion.shared and not trf_data:
        components = dict.fromkeys(conversion.shared, TRF_DATA)
        msg.warn(
            "The pipeline does not set doc._.trf_data. If your code reads it, convert with "
            "--trf-data, or load the pipeline with:"
        )
        print(f"spacy.load({str(output)!r}, config={ {'components': components} })")
    if corpus is None:
        msg.warn("Nothing was compared on text of yours: name some with --corpus.")
    msg.good(f"Saved the {'quantized' if quantize else 'converted'} pipeline to {output}")
