"""`spacy distil quantize`: a trained pipeline into one that runs without torch."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from spacy_distil.cli import distil_cli
from spacy_distil.errors import friendly_errors


class Precision(str, Enum):
    """Of the products with weights."""

    int8 = "int8"
    fp32 = "fp32"


@distil_cli.command("quantize", no_args_is_help=True)
def quantize_cli(
    pipeline: Annotated[
        str,
        typer.Argument(metavar="PIPELINE", help="Trained pipeline: directory or package."),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Directory for the new pipeline.")],
    precision: Annotated[
        Precision,
        typer.Option("--precision", "-p", help="int8, or fp32 for the same numbers without torch."),
    ] = Precision.int8,
    corpus: Annotated[
        Path | None,
        typer.Option(
            "--corpus",
            "--calibrate",
            "-c",
            help="Documents that the result is checked on, and that decide which layers stay in "
            "float32 where int8 loses too much: .spacy (annotated ones are scored), .txt (one text "
            "a line) or .jsonl. Left out: a few sentences that come with spaCy.",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", help="Check the first N documents only; 0 for all.")
    ] = 0,
    min_agreement: Annotated[
        float,
        typer.Option(
            "--min-agreement",
            help="Write nothing where the predictions of a pipe agree less (0 to 1).",
        ),
    ] = 0.95,
    max_fp32_layers: Annotated[
        int | None,
        typer.Option(
            "--max-fp32-layers",
            min=0,
            help="How many layers of an encoder may stay in float32 to reach that. Left out: half.",
        ),
    ] = None,
    reduced_range: Annotated[
        bool,
        typer.Option(
            "--reduced-range",
            help="7-bit weights, for CPUs without VNNI, on which 8-bit ones can saturate.",
        ),
    ] = False,
    prune_vocab: Annotated[
        Path | None,
        typer.Option(
            "--prune-vocab",
            help="Drop the pieces that do not occur in these documents (.spacy, .txt, .jsonl).",
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            "--vocab-size", min=1, help="With --prune-vocab: how many pieces to keep instead."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Documents at a time.")] = 64,
    report: Annotated[
        Path | None, typer.Option("--report", help="JSON file for everything that was measured.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-F", help="Replace the pipeline that OUT holds.")
    ] = False,
) -> None:
    """Make a pipeline that runs on ONNX Runtime: several times faster on a CPU, without torch.

    Every encoder of the pipeline becomes a graph, its products with weights and its embeddings in
    int8; the other components stay as they are. Activations are rounded piece by piece, so that
    what is predicted for a document does not depend on the others in its batch.

    The result is checked against the original on documents, and written only where they agree.
    The CPU that it was checked on is written into the encoder's config.json.
    """
    with friendly_errors():
        import srsly

        from spacy_distil.export.quantize import quantize
        from spacy_distil.export.quantize_table import to_text

        result = quantize(
            pipeline,
            output,
            precision=precision.value,
            texts=corpus,
            limit=limit,
            min_agreement=min_agreement,
            max_fp32_layers=max_fp32_layers,
            reduced_range=reduced_range,
            prune_vocab=prune_vocab,
            vocab_size=vocab_size,
            batch_size=batch_size,
            force=force,
            log=msg.info,
        )
        if report is not None:
            report.parent.mkdir(parents=True, exist_ok=True)
            srsly.write_json(report, result.to_dict())
    print(to_text(result))
    if corpus is None:
        msg.warn("Checked on a few sentences alone: name documents of yours with --corpus.")
    msg.good(f"Saved the pipeline to {output}")
