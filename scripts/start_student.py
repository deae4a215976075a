"""The encoder that the student's training starts from.

    python -m scripts.start_student SOURCE OUTPUT --teacher DIR --distilled DIR --finetuned DIR

SOURCE is `teacher`: layers of the teacher, copied; `distilled`: what `spacy distil encoder` made of
them; or `finetuned`: layers of the teacher after it was trained on the corpus, copied.
"""

from __future__ import annotations

import shutil
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from spacy_distil.errors import ConfigError, friendly_errors

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


class Source(str, Enum):
    teacher = "teacher"
    distilled = "distilled"
    finetuned = "finetuned"


def copy_layers(encoder: Path, output: Path, layers: str, n_layers: int) -> None:
    """Save an encoder of some of the layers of another."""
    from spacy_distil.distillation.students import choose_layers, make_student
    from spacy_distil.distillation.teachers import load_teacher

    teacher = load_teacher(str(encoder))
    if layers not in ("first", "even"):
        raise ConfigError(f"student_layers = {layers!r}: expected 'first' or 'even'")
    chosen = choose_layers(
        "first" if layers == "first" else "even", n_layers, available=teacher.n_layers
    )
    make_student(teacher, chosen).save_pretrained(output)
    teacher.tokenizer.save_pretrained(output)
    msg.good(f"{output}: layers {', '.join(map(str, chosen))} of {encoder}")


def main(
    source: Annotated[Source, typer.Argument(help="What to start from")],
    output: Annotated[Path, typer.Argument(help="Directory of the encoder")],
    teacher: Annotated[Path, typer.Option(help="The teacher encoder")],
    distilled: Annotated[Path, typer.Option(help="The distilled encoder")],
    finetuned: Annotated[Path, typer.Option(help="The encoder of the teacher's pipeline")],
    layers: Annotated[str, typer.Option(help="Which layers are copied: first or even")] = "first",
    n_layers: Annotated[int, typer.Option(help="How many layers are copied")] = 3,
) -> None:
    """Put the encoder that the student's training starts from in its place."""
    with friendly_errors():
        shutil.rmtree(output, ignore_errors=True)
        if source is Source.distilled:
            output.mkdir(parents=True)
            for name in FILES:
                shutil.copy(distilled / name, output / name)
            msg.good(f"{output}: {distilled}")
        else:
            copy_layers(
                teacher if source is Source.teacher else finetuned, output, layers, n_layers
            )


if __name__ == "__main__":
    typer.run(main)
