"""Write the model card of a student, with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from wasabi import MarkdownRenderer

from spacy_distil.students.licence import Licence
from spacy_distil.students.shapes import StudentShape
from spacy_distil.students.teachers import Teacher

Row = tuple[str, ...]  # of a table


def undistilled_card(
    teacher: Teacher, shape: StudentShape, *, licence: Licence, n_parameters: int
) -> str:
    """Write the card of a student that was cut out of a teacher, and not trained since.

    licence: the teacher's. n_parameters: the student's.
    """
    name = teacher.name
    short = Path(name).name if Path(name).is_dir() else name
    kept = ", with their most important parts" if shape.cuts else ""
    layers = ", ".join(map(str, shape.layers))
    card = MarkdownRenderer()
    card.add(card_metadata(name, licence, is_distilled=False))
    card.add(card.title(1, f"{len(shape.layers)}-layer student of {short}, not distilled"))
    card.add(
        f"Cut out of `{name}` with spacy-distil: its layers {layers} (0 is the lowest){kept}. It "
        "has not been trained since. Distil it with `spacy distil encoder`."
    )
    rows = compare_shapes(teacher, shape, n_parameters)
    card.add(markdown_table(("", "teacher", "student"), rows, numbers=2))
    card.add(card.title(2, "Licence"))
    card.add(licence.describe())
    return f"{card.text}\n"


def card_metadata(teacher: str, licence: Licence, is_distilled: bool) -> str:
    """Write the block at the top of a card.

    teacher: directory or hub name. licence: the teacher's.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=None if Path(teacher).is_dir() else teacher,
        library_name="transformers",
        tags=[*(["distillation"] if is_distilled else []), "spacy-distil"],
        **licence.metadata,
    )
    return f"---\n{data.to_yaml().strip()}\n---"


def compare_shapes(teacher: Teacher, shape: StudentShape, n_parameters: int) -> list[Row]:
    """Compare teacher and student in rows of a table. n_parameters: the student's."""
    numbers = {
        "layers": (shape.teacher.layers, len(shape.layers)),
        "attention heads in a layer": (shape.teacher.heads, shape.heads),
        "feed-forward neurons in a layer": (shape.teacher.ffn, shape.ffn),
        "width": (shape.teacher.width, shape.width),
        "parameters": (teacher.model.num_parameters(), n_parameters),
    }
    return [(name, f"{whole:,}", f"{own:,}") for name, (whole, own) in numbers.items()]


def markdown_table(header: Row, rows: Sequence[Row], *, numbers: int = 0) -> str:
    """Write a table. numbers: how many of the last columns hold numbers."""
    aligns: list[Literal["l", "r"]] = ["l"] * (len(header) - numbers)
    aligns += ["r"] * numbers
    escaped = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    return MarkdownRenderer().table(escaped, header, aligns=aligns)
