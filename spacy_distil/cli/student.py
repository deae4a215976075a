"""`spacy distil student`: build a student of any shape and report its costs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wasabi import msg

from spacy_distil.cli.app import distil_cli
from spacy_distil.cli.options import TxtDocumentsChoice, TxtDocumentsOption
from spacy_distil.errors import TRAINING, ConfigError, friendly_errors, require_all

if TYPE_CHECKING:
    from spacy_distil.students.layer_choice import Layers


class Choice(str, Enum):
    """Which of the teacher's layers."""

    first = "first"
    last = "last"
    even = "even"
    ends = "ends"
    all = "all"


@distil_cli.command("student", no_args_is_help=True)
def student_cli(
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="Encoder: directory or hub name.")
    ],
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            "-l",
            metavar="N|N,N,...",
            help="Number of the teacher's layers, or the layers themselves, where 0 is the lowest "
            "('3,' is layer 3 alone). Default: half of them.",
        ),
    ] = None,
    choice: Annotated[
        Choice | None,
        typer.Option(
            "--from",
            help="If --layers is a number: the lowest layers, the highest, evenly spaced ones, or "
            "half from either end. Default: the lowest.",
        ),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            "--heads", help="Attention heads per layer. Default: heads of the teacher's size."
        ),
    ] = None,
    ffn: Annotated[
        int | None,
        typer.Option("--ffn", help="Feed-forward neurons per layer. Default: the teacher's."),
    ] = None,
    width: Annotated[
        int | None, typer.Option("--width", help="Hidden size. Default: the teacher's.")
    ] = None,
    share_layers: Annotated[
        bool,
        typer.Option(
            "--share-layers", help="Let all layers share the weights of one, as in ALBERT."
        ),
    ] = False,
    embedding_size: Annotated[
        int | None,
        typer.Option(
            "--embedding-size",
            help="Width of factorized embeddings, as in ALBERT. Default: not factorized.",
        ),
    ] = None,
    prune_vocab: Annotated[
        Path | None,
        typer.Option(
            "--prune-vocab",
            help="Keep only the pieces of the vocabulary that occur in these documents: a .txt, "
            ".jsonl or .spacy file, or a directory of them.",
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            "--vocab-size",
            min=1,
            help="With --prune-vocab: keep this number of pieces, the most frequent ones.",
        ),
    ] = None,
    min_count: Annotated[
        int | None,
        typer.Option(
            "--min-count",
            min=1,
            help="With --prune-vocab: keep the pieces that occur this often. Default: once.",
        ),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            "--corpus",
            help="Text to measure the importance of heads, neurons and dimensions on, and to count "
            "pieces in for --embedding-size, in the same formats. A few blocks of it are read.",
        ),
    ] = None,
    txt_documents: TxtDocumentsOption = TxtDocumentsChoice.auto,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory for the student.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit on the hub.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="CPU threads of the speed measurement."),
    ] = None,
) -> None:
    """Build a student of any shape and compare its costs with its teacher's.

    A student with fewer attention heads, feed-forward neurons or dimensions keeps the most
    important ones. The importance of a part is how much the teacher's loss on the corpus depends on
    it. The command prints the importance of the heads as a heat map, with a * on the heads that
    the student keeps. This command does not train the student. To distil it, use 'spacy distil
    encoder' with the same settings in the section [student] of its config.

    \b
      python -m spacy distil student TEACHER --layers 3 --heads 6 --ffn 768
      python -m spacy distil student TEACHER --layers 0,2,5 --width 256 --corpus texts/ \\
          --prune-vocab texts/ --vocab-size 10000 --output student

    The output is an ordinary Hugging Face model directory. Without --corpus, the command cannot
    save a student with smaller layers or factorized embeddings, and measures random weights, which
    cost the same. It measures the speed of the encoder alone, on this machine, in float32, on
    batches of full blocks. It computes words/s from pieces/s with the teacher's pieces per word of
    the corpus, or of English example sentences.
    """
    with friendly_errors():
        require_all(TRAINING, purpose="Making a student")
        from spacy_distil.students.build import build_student
        from spacy_distil.students.card import describe_layers
        from spacy_distil.students.heat_map import print_importance

        chosen, n_layers = _parse_layers(layers, choice)
        built = build_student(
            teacher,
            output,
            layers=chosen,
            n_layers=n_layers,
            heads=heads,
            ffn=ffn,
            width=width,
            share_layers=share_layers,
            embedding_size=embedding_size,
            prune_vocab=prune_vocab,
            vocab_size=vocab_size,
            min_count=min_count,
            corpus=corpus,
            revision=revision,
            threads=threads,
            txt_documents=txt_documents.value,
            log=msg.info,
        )
        if built.importance is not None:
            print_importance(built.importance, built.shape, model_type=built.model_type)
    print(built.costs.to_text())
    parts = describe_layers(built.shape, f" of the teacher's {built.shape.teacher.layers}")
    counted = "the corpus" if corpus else "English example sentences"
    msg.info(
        f"{parts[:1].upper()}{parts[1:]}; 0 is the lowest. "
        f"{built.pieces_per_word:.2f} pieces a word in {counted}"
    )
    if output is not None:
        msg.good(f"Saved the student to {output}")
    elif built.is_random:
        msg.info("Its weights were random: name text with --corpus to make one")


def _parse_layers(layers: str | None, choice: Choice | None) -> tuple[Layers, int | None]:
    """Parse --layers and --from: which of the teacher's layers, and how many."""
    kind: Layers = (choice or Choice.first).value
    if layers is None:
        return kind, None
    if "," in layers and choice is not None:
        raise ConfigError(
            f"--layers {layers} says which layers, and so does --from {kind}. Leave out one of "
            f"the two"
        )
    try:
        numbers = [int(part) for part in layers.split(",") if part.strip()]
        if "," in layers:
            return numbers, None
        (count,) = numbers
    except ValueError:
        raise ConfigError(
            f"--layers {layers or repr(layers)}: expected a number, such as 3, or layers, such as "
            f"0,2,5"
        ) from None
    return kind, count
