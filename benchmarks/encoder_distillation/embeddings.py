"""Measure how much factorized embeddings lose before any training, and how small they are.

    python -m benchmarks.encoder_distillation.embeddings TEACHER TEXTS

Students have all of the teacher's layers, and embeddings of smaller and smaller size. Pieces are
counted in the first texts; hidden states are compared on the texts behind them. The table has the
error of the centred piece embeddings, relative to their length, for all pieces alike and for pieces
as often as the text has them; and the mean cosine of the last hidden states to the teacher's, with
the pieces counted and with all alike. A second table has the size of the embeddings of the most
frequent pieces in int8, 4 bits, and factorized in int8, as `spacy distil quantize` stores them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from benchmarks.common.options import OptionalOutput
from benchmarks.common.results import report_results, timestamp
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.export.graph import quantize_columns, quantize_to_4_bits
from spacy_distil.students.albert import factorize, read_embeddings
from spacy_distil.students.making import make_student
from spacy_distil.students.sample_text import count_pieces, read_corpus
from spacy_distil.students.shapes import choose_shape
from spacy_distil.students.teachers import Teacher, load_teacher
from spacy_distil.tables import Table, megabytes

LENGTH = 128  # most pieces of a text


def main(
    teacher: Annotated[Path, typer.Argument(help="Hugging Face model directory", exists=True)],
    texts: Annotated[Path, typer.Argument(help="File or directory of text", exists=True)],
    sizes: Annotated[str, typer.Option(help="Widths, separated by commas")] = "64,128,192,256",
    compared: Annotated[int, typer.Option(help="Texts to compare hidden states on", min=1)] = 100,
    counted: Annotated[int, typer.Option(help="Texts to count pieces in", min=1)] = 5000,
    pieces: Annotated[int, typer.Option(help="Pieces of the second table", min=1)] = 15_000,
    output: OptionalOutput = None,
) -> None:
    date = timestamp()
    loaded = load_teacher(str(teacher))
    length = min(LENGTH, loaded.longest_block)
    encoded = [
        np.array(loaded.tokenizer(text, truncation=True, max_length=length)["input_ids"])
        for text in islice(read_corpus(texts, setting="TEXTS"), compared + counted)
    ]
    held_out, train = encoded[-compared:], encoded[:-compared]
    if not train:
        raise ConfigError(f"{texts} has {len(encoded)} texts: expected more than {compared}")
    counts = count_pieces(train, int(loaded.model.config.vocab_size))
    chosen = [int(size) for size in sizes.split(",")]
    losses = measure_losses(loaded, chosen, counts, held_out)
    stored = measure_sizes(loaded, chosen, counts, pieces)
    parts = [
        Table(
            "Factorized embeddings before training",
            ["width", "error, all pieces alike", "error, as frequent", "cosine", "uncounted"],
            [[f"{size}", *(f"{value:.3f}" for value in row)] for size, row in losses.items()],
        ),
        Table(
            f"Embeddings of {pieces:,} pieces",
            ["", "size"],
            [[name, megabytes(size)] for name, size in stored.items()],
        ),
    ]
    data = {"losses": losses, "sizes": stored}
    report_results(parts, data, output=output, stem="embeddings", date=date)


@torch.no_grad()
def measure_losses(
    teacher: Teacher, sizes: Sequence[int], counts: np.ndarray, held_out: Sequence[np.ndarray]
) -> dict[int, list[float]]:
    """Measure the errors and cosines of each size, in the order of the table."""
    encoder = teacher.model.base_model
    whole = read_embeddings(encoder)
    centred = whole.pieces - whole.pieces.mean(dim=1, keepdim=True)
    squares = centred.square().sum(dim=1)
    frequent = torch.from_numpy(counts).to(squares)
    expected = _hidden(encoder, held_out)
    rows = {}
    for size in sizes:
        small = factorize(whole, size, counts).pieces * (centred.shape[1] / size) ** 0.5
        # The basis is orthonormal, so the rest of a row's length lies outside.
        lost = (squares - small.square().sum(dim=1)).clamp(min=0)
        shape = choose_shape(teacher.model.config, "all", embedding_size=size)
        cosines = [
            F.cosine_similarity(
                _hidden(make_student(teacher, shape, counts=each).eval(), held_out), expected
            )
            for each in (counts, None)
        ]
        rows[size] = [
            float((lost.sum() / squares.sum()).sqrt()),
            float(((lost * frequent).sum() / (squares * frequent).sum()).sqrt()),
            *(float(cosine.mean()) for cosine in cosines),
        ]
    return rows


def _hidden(encoder: torch.nn.Module, windows: Sequence[np.ndarray]) -> Tensor:
    """Compute the last hidden states of all pieces: (n_pieces, width)."""
    states = (encoder(input_ids=torch.from_numpy(ids)[None]) for ids in windows)
    return torch.cat([each.last_hidden_state[0] for each in states])


@torch.no_grad()
def measure_sizes(
    teacher: Teacher, sizes: Sequence[int], counts: np.ndarray, n_pieces: int
) -> dict[str, int]:
    """Measure the bytes of the embeddings of the most frequent pieces, by form."""
    whole = read_embeddings(teacher.model.base_model)
    kept = np.argsort(-counts, kind="stable")[:n_pieces]
    table = whole.pieces.numpy()[kept]

    def stored(*arrays: np.ndarray) -> int:
        return sum(array.nbytes for array in arrays)

    found = {
        "int8": stored(*quantize_columns(table.T, reduced_range=False)),
        "4 bits": stored(*quantize_to_4_bits(table)),
    }
    for size in sizes:
        small = factorize(whole, size, counts)
        rows = small.pieces.numpy()[kept]
        projection = stored(small.projection.numpy(), small.bias.numpy())
        for name, arrays in (
            ("int8", quantize_columns(rows.T, reduced_range=False)),
            ("4 bits", quantize_to_4_bits(rows)),
        ):
            found[f"width {size}, {name}, with the map"] = stored(*arrays) + projection
    return found


if __name__ == "__main__":
    with friendly_errors():
        typer.run(main)
