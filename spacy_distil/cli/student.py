"""`spacy distil student`: a student of any shape, untaught, and what it costs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wasabi import msg

from spacy_distil.cli import distil_cli
from spacy_distil.errors import ConfigError, friendly_errors, require

if TYPE_CHECKING:
    from spacy_distil.students.layer_choice import Layers


class Choice(str, Enum):
    """Of the teacher's layers."""

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
            help="How many of the teacher's layers, or which ones, the lowest being 0 (a single "
            "one as '3,'). Left out: half of them.",
        ),
    ] = None,
    choice: Annotated[
        Choice | None,
        typer.Option(
            "--from",
            help="Which ones where --layers is a number: the lowest, the highest, evenly spaced "
            "ones, or half from either end. Left out: the lowest.",
        ),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            "--heads", help="Attention heads of a layer. Left out: of the teacher's size."
        ),
    ] = None,
    ffn: Annotated[
        int | None,
        typer.Option("--ffn", help="Feed-forward neurons of a layer. Left out: the teacher's."),
    ] = None,
    width: Annotated[
        int | None, typer.Option("--width", help="Hidden size. Left out: the teacher's.")
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            "--corpus",
            "-c",
            help="Text that the importance of heads, neurons and dimensions is measured on: .txt, "
            ".jsonl or .spacy, or a directory of such. A few blocks of it are read.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory that becomes the student's.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit on the hub.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="CPU threads that speed is measured with."),
    ] = None,
) -> None:
    """Build a student of any shape and report what it costs beside its teacher.

    Heads, feed-forward neurons and dimensions that it has no room for are left out by importance:
    by how much the teacher's loss on the corpus depends on them. That of heads is printed as a
    heat map, those that stay with a *. The student is not taught anything here: 'encoder' does
    that, with the same settings in the section [student] of its config.

    \b
      python -m spacy distil student TEACHER --layers 3 --heads 6 --ffn 768
      python -m spacy distil student TEACHER --layers 0,2,5 --width 256 \\
          --corpus texts/ --output student

    The output becomes an ordinary Hugging Face model directory. Without --corpus a student that
    leaves parts of layers out cannot be saved: the report is then of random weights, which cost
    the same. Speed is that of the encoder alone, on this machine, in float32, on batches of full
    blocks; words/s are pieces/s by the pieces of a word in the corpus, or in English example
    sentences.
    """
    with friendly_errors():
        for module in ("torch", "transformers"):
            require(module, extra="train", purpose="Making a student")
        import torch

        from spacy_distil.runs.files import atomic_directory
        from spacy_distil.students.card import cut_student_card
        from spacy_distil.students.costs import cost_table
        from spacy_distil.students.heat_map import print_importance
        from spacy_distil.students.importance import importance_batches, measure_importance
        from spacy_distil.students.licence import find_licence
        from spacy_distil.students.making import make_student
        from spacy_distil.students.sample_text import pieces_per_word, read_blocks
        from spacy_distil.students.shapes import choose_shape
        from spacy_distil.students.teachers import load_teacher

        if output is not None and output.exists() and (output.is_file() or any(output.iterdir())):
            raise ConfigError(f"--output {output} exists. Choose another directory.")
        loaded = load_teacher(teacher, revision=revision)
        config = loaded.model.config
        which, count = _parse_layers(layers, choice, available=loaded.n_layers)
        shape = choose_shape(config, which, count, heads=heads, ffn=ffn, width=width, prefix="--")
        if output is not None and shape.cuts and corpus is None:
            raise ConfigError(
                f"--output {output}: the student has less than the teacher by --"
                f"{', --'.join(shape.cuts)}, and what it keeps is measured on text. Name some with "
                f"--corpus"
            )
        importance = None
        if corpus is not None and shape.cuts:
            blocks = read_blocks(corpus, loaded, setting="--corpus")
            msg.info(f"Measuring importance on {len(blocks)} blocks of {corpus}")
            importance = measure_importance(loaded, importance_batches(blocks, loaded))
            print_importance(importance, shape, model_type=config.model_type)
        is_made = importance is not None or not shape.cuts
        torch.manual_seed(0)  # what is new in larger heads is drawn
        student = make_student(
            loaded, shape, importance, start="teacher" if is_made else "random"
        ).eval()
        words = pieces_per_word(corpus, loaded, setting="--corpus")
        table = cost_table(loaded.model, student, pieces_per_word=words, threads=threads)
        print(table.to_text())
        text = "the corpus" if corpus else "English example sentences"
        msg.info(
            f"Layers {', '.join(map(str, shape.layers))} of the teacher's {loaded.n_layers}, 0 "
            f"being the lowest. {words:.2f} pieces a word in {text}"
        )
        if output is not None:
            with atomic_directory(output) as directory:
                student.save_pretrained(directory)
                loaded.tokenizer.save_pretrained(directory)
                card = cut_student_card(
                    loaded,
                    shape,
                    licence=find_licence(teacher, revision=revision),
                    n_parameters=student.num_parameters(),
                )
                (directory / "README.md").write_text(card, encoding="utf-8")
            msg.good(f"Saved the student to {output}")
        elif not is_made:
            msg.info("Its weights were random: name text with --corpus to make one")


def _parse_layers(
    layers: str | None, choice: Choice | None, *, available: int
) -> tuple[Layers, int | None]:
    """What to choose layers by, and how many. available: of the teacher's."""
    which = (choice or Choice.first).value
    if layers is None:
        return which, None  # type: ignore[return-value]  # one of the names
    if "," in layers and choice is not None:
        raise ConfigError(
            f"--layers {layers} says which layers, and so does --from {which}. Leave out one of "
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
    if not 1 <= count <= available:
        raise ConfigError(f"--layers {count}: must be from 1 to the teacher's {available}")
    if choice is Choice.all:
        raise ConfigError(
            f"--layers {count} with --from all, which is all {available}. Leave out one of the two"
        )
    return which, count  # type: ignore[return-value]
