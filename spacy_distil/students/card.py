"""Model cards of students: their metadata, shapes and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from wasabi import MarkdownRenderer

from spacy_distil.students.licence import Licence
from spacy_distil.students.shapes import StudentShape
from spacy_distil.students.teachers import Teacher

Cells = tuple[str, ...]  # of one row of a table


def cut_student_card(
    teacher: Teacher, shape: StudentShape, *, licence: Licence, n_parameters: int, n_pieces: int
) -> str:
    """Write the README.md of a student that was cut out of a teacher and not distilled.

    licence: the teacher's.
    n_parameters, n_pieces: the student's.
    """
    card = MarkdownRenderer()
    card.add(metadata_block(teacher.name, licence, tags=["spacy-distil"]))
    card.add(
        card.title(
            1, f"{len(shape.layers)}-layer student of {short_name(teacher.name)}, not distilled"
        )
    )
    card.add(
        f"Cut out of `{teacher.name}` with spacy-distil: its {describe_parts(shape)}. It has not "
        f"been trained since, and knows less than it can learn: distil it with `spacy distil "
        f"encoder`."
    )
    card.add(shapes_table(teacher, shape, n_parameters, n_pieces))
    card.add(card.title(2, "Licence"))
    card.add(licence.describe())
    return f"{card.text}\n"


def short_name(teacher: str) -> str:
    """The last part of a directory, or the whole of a name on the hub."""
    return Path(teacher).name if Path(teacher).is_dir() else teacher


def describe_parts(shape: StudentShape) -> str:
    """Name the parts of the teacher that a student consists of, for a sentence."""
    parts = describe_layers(shape, " (0 is the lowest)")
    if shape.cuts:
        parts += ", of which the most important parts were kept"
    if shape.embedding_size is not None:
        parts += f", and its embeddings, factorized to {shape.embedding_size} dimensions"
    return parts


def describe_layers(shape: StudentShape, note: str) -> str:
    """Name the layers of the teacher that a student consists of. note: follows their numbers."""
    if shape.share_layers:
        return f"layer {shape.layers[0]}{note}, applied {len(shape.layers)} times"
    return f"layers {', '.join(map(str, shape.layers))}{note}"


def metadata_block(teacher: str, licence: Licence, *, tags: list[str]) -> str:
    """The block at the top of a card, which the Hugging Face hub reads."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=None if Path(teacher).is_dir() else teacher,
        library_name="transformers",
        tags=tags,
        **licence.metadata,
    )
    return f"---\n{data.to_yaml().strip()}\n---"


def shapes_table(teacher: Teacher, shape: StudentShape, n_parameters: int, n_pieces: int) -> str:
    """Compare the sizes of both models. n_parameters, n_pieces: the student's."""
    config = teacher.model.config
    embeddings = int(getattr(config, "embedding_size", config.hidden_size))
    pairs = {
        "layers": (shape.teacher.layers, len(shape.layers)),
        "attention heads in a layer": (shape.teacher.heads, shape.heads),
        "feed-forward neurons in a layer": (shape.teacher.ffn, shape.ffn),
        "width": (shape.teacher.width, shape.width),
        "parameters": (teacher.n_parameters, n_parameters),
    }
    if n_pieces != teacher.n_pieces:
        pairs["pieces in the vocabulary"] = (teacher.n_pieces, n_pieces)
    if shape.share_layers:
        pairs["layers with weights of their own"] = (shape.teacher.layers, 1)
    if shape.embedding_size is not None:
        pairs["width of the embeddings"] = (embeddings, shape.embedding_size)
    rows = [(size, f"{a:,}", f"{b:,}") for size, (a, b) in pairs.items()]
    return markdown_table(("", "teacher", "student"), rows, numbers=2)


def markdown_table(header: Cells, rows: Sequence[Cells], *, numbers: int = 0) -> str:
    """Render a table. numbers: how many of the last columns are numbers, aligned to the right."""
    aligns: list[Literal["l", "r"]] = ["l"] * (len(header) - numbers)
    aligns += ["r"] * numbers
    escaped = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    return MarkdownRenderer().table(escaped, header, aligns=aligns)
