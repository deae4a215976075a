"""Prepare the encoder that the student's training starts from.

    python -m scripts.start_student SOURCE OUTPUT --teacher DIR --distilled DIR --finetuned DIR

SOURCE is `teacher`, for layers of the teacher encoder; `distilled`, for the encoder that `spacy
distil encoder` made of them; or `finetuned`, for layers of the encoder of the trained teacher
pipeline. Only the directory of that option is read. The other two may be missing.
"""

from __future__ import annotations

import shutil
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from spacy_distil.engines.files import check_folder
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.runs.digests import write_sums
from spacy_distil.runs.files import atomic_directory

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


class Source(str, Enum):
    teacher = "teacher"
    distilled = "distilled"
    finetuned = "finetuned"


class Choice(str, Enum):
    """Which layers of an encoder."""

    first = "first"
    last = "last"
    even = "even"
    ends = "ends"


def check_paths(source: Source, encoder: Path | None, output: Path) -> Path:
    """Return the encoder. Raises ConfigError if it is not named or would be overwritten."""
    if encoder is None:
        raise ConfigError(f"{source.value}: name the directory to start from with --{source.value}")
    inside = encoder.resolve()
    if output.resolve() in (inside, *inside.parents):
        raise ConfigError(
            f"{output} is, or holds, the encoder of --{source.value}. Choose another directory."
        )
    return encoder


def copy_files(encoder: Path, output: Path) -> None:
    """Copy an encoder as it is."""
    missing = [name for name in FILES if not (encoder / name).is_file()]
    if missing:
        raise ConfigError(
            f"{encoder} has no {', no '.join(missing)}: make a distilled encoder first"
        )
    check_folder(encoder)
    with atomic_directory(output) as directory:
        for name in FILES:
            shutil.copy(encoder / name, directory / name)
        write_sums(directory)
    msg.good(f"{output}: {encoder}")


def copy_layers(encoder: Path, output: Path, layers: Choice, n_layers: int) -> None:
    """Make an encoder of some of the layers of another."""
    from spacy_distil.engines.pretrained import save_encoder
    from spacy_distil.students.layer_choice import choose_layers
    from spacy_distil.students.making import make_student
    from spacy_distil.students.teachers import load_teacher

    teacher = load_teacher(str(encoder))
    chosen = choose_layers(layers.value, n_layers, available=teacher.n_layers, prefix="student_")
    with atomic_directory(output) as directory:
        save_encoder(make_student(teacher, chosen), teacher.tokenizer, directory)
    msg.good(f"{output}: layers {', '.join(map(str, chosen))} of {encoder}")


def main(
    source: Annotated[Source, typer.Argument(help="Encoder to start from")],
    output: Annotated[
        Path, typer.Argument(help="Directory for the encoder, replaced if it exists")
    ],
    teacher: Annotated[Path | None, typer.Option(help="The teacher encoder")] = None,
    distilled: Annotated[Path | None, typer.Option(help="The distilled encoder")] = None,
    finetuned: Annotated[
        Path | None, typer.Option(help="The encoder of the teacher's pipeline")
    ] = None,
    layers: Annotated[Choice, typer.Option(help="Which layers are copied")] = Choice.first,
    n_layers: Annotated[int, typer.Option(help="How many layers are copied")] = 3,
) -> None:
    """Prepare the encoder that the student's training starts from."""
    with friendly_errors():
        named = {"teacher": teacher, "distilled": distilled, "finetuned": finetuned}
        encoder = check_paths(source, named[source.value], output)
        if source is Source.distilled:
            copy_files(encoder, output)
        else:
            copy_layers(encoder, output, layers, n_layers)


if __name__ == "__main__":
    typer.run(main)
