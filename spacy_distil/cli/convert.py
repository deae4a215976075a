"""`spacy distil convert`: a spacy-transformers pipeline into one of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from spacy_distil.cli import distil_cli
from spacy_distil.errors import ConfigError, friendly_errors


@distil_cli.command("convert", no_args_is_help=True)
def convert_cli(
    pipeline: Annotated[
        str,
        typer.Argument(
            metavar="PIPELINE", help="Trained spacy-transformers pipeline: directory or package."
        ),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Directory for the converted pipeline.")
    ],
    corpus: Annotated[
        Path | None,
        typer.Option("--corpus", "-c", help="Annotated documents (.spacy) to compare both on."),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts",
            "-t",
            help='Texts to compare both on: .txt, one a line, or .jsonl with {"text": "..."}.',
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", help="Compare the first N documents only; 0 for all.")
    ] = 0,
    min_agreement: Annotated[
        float,
        typer.Option(
            "--min-agreement",
            help="Write nothing where the predictions of a pipe agree less (0 to 1), in documents "
            "of which both pipelines encode the same windows.",
        ),
    ] = 0.98,
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            help="Most pieces encoded together. Left out: what comes closest to the windows that "
            "the pipeline was trained with.",
        ),
    ] = None,
    private_copies: Annotated[
        bool,
        typer.Option(
            "--private-copies/--no-private-copies",
            help="Whether a pipe with another pooling than the rest gets a copy of the encoder for "
            "itself, or the conversion is refused.",
        ),
    ] = True,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Documents at a time.")] = 64,
    force: Annotated[
        bool, typer.Option("--force", "-F", help="Replace the pipeline that OUT holds.")
    ] = False,
) -> None:
    """Convert a spacy-transformers pipeline: the same weights and heads, on our encoder.

    The component "transformer" becomes a "distil_transformer" of the same name, its listeners
    become ours, every other component stays as it is. The converted pipeline is faster, needs no
    spacy-transformers, and can be quantized.

    Predictions are the same where both encode the same windows: in documents that were one window
    (strided_spans: of up to `window` tokens, and 1.5 times as many pieces; doc_spans: not longer
    than the encoder takes; sent_spans: of one sentence). Longer ones are split elsewhere, between
    pieces, and nothing is truncated: name documents of yours with --corpus or --texts to see what
    that changes.

    What cannot be converted is named, and nothing is written.
    """
    with friendly_errors():
        if corpus is not None and texts is not None:
            raise ConfigError("--corpus and --texts: expected one of them.")
        from spacy_distil.export.convert import convert

        conversion = convert(
            pipeline,
            output,
            texts=corpus or texts,
            limit=limit,
            window=window,
            private_copies=private_copies,
            min_agreement=min_agreement,
            batch_size=batch_size,
            force=force,
            log=msg.info,
        )
        from spacy_distil.export.conversion_check import to_text

    print(to_text(conversion.comparison))
    for note in conversion.notes:
        msg.warn(f"{note}.")
    if corpus is None and texts is None:
        msg.warn("Nothing was compared on text of yours: use --corpus or --texts.")
    msg.good(f"Saved the converted pipeline to {output}")
