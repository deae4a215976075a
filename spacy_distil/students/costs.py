"""Compare a student's costs with its teacher's: parameters, bytes, operations and speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch

from spacy_distil.engines.files import longest_window
from spacy_distil.students.flops import encoder_flops
from spacy_distil.students.masked_lm_heads import embedding_projection
from spacy_distil.students.sample_text import BLOCK_SIZE
from spacy_distil.students.shapes import shape_of
from spacy_distil.tables import Table, megabytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Blocks in a timed forward pass, and timed passes of each model.
_TIMED_BLOCKS, _ROUNDS = 4, 7


class EncoderSize(NamedTuple):
    """The size of an encoder without its masked-LM head.

    embeddings, layers: parameters. Parameters outside the embeddings count as the layers'.
    n_bytes: of all parameters in float32.
    int8_bytes: estimate for the ONNX graph that `spacy distil quantize` makes. It has int8 products
        and piece embeddings, with a float32 scale for each column and piece. The map from narrower
        embeddings to the hidden states stays in float32.
    """

    embeddings: int
    layers: int
    n_bytes: int
    int8_bytes: int


def encoder_size(model: PreTrainedModel) -> EncoderSize:
    """Measure an encoder.

    model: an encoder, with or without a masked-LM head, and without pooler.
    """
    encoder = model.base_model
    pieces = encoder.get_input_embeddings().weight
    embedding_ids = {id(parameter) for parameter in encoder.embeddings.parameters()}
    projection = embedding_projection(encoder)
    in_float32 = embedding_ids | ({id(projection.weight)} if projection is not None else set())
    embeddings = layers = int8_bytes = 0
    for parameter in encoder.parameters():
        in_embeddings = id(parameter) in embedding_ids
        if in_embeddings:
            embeddings += parameter.numel()
        else:
            layers += parameter.numel()
        if parameter is pieces or (parameter.dim() == 2 and id(parameter) not in in_float32):
            int8_bytes += parameter.numel() + 4 * len(parameter)
        else:
            int8_bytes += 4 * parameter.numel()
    return EncoderSize(embeddings, layers, 4 * (embeddings + layers), int8_bytes)


def pieces_per_second(
    models: Mapping[str, PreTrainedModel], *, length: int = BLOCK_SIZE, threads: int | None = None
) -> dict[str, float]:
    """Time encoders on this machine's CPU, in float32, on random pieces.

    The encoders take turns, so that other work on the machine slows all of them alike. The median
    time counts.

    models: by name.
    length: pieces per block.
    threads: CPU threads; `None` leaves the choice to torch.
    RETURNS: pieces per second, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with _cpu_threads(threads), torch.inference_mode():
        for turn in range(_ROUNDS + 1):
            for name, model in models.items():
                # The first ids of a vocabulary may be special pieces.
                n_pieces = model.config.vocab_size
                pieces = torch.randint(min(5, n_pieces - 1), n_pieces, (_TIMED_BLOCKS, length))
                start = time.perf_counter()
                model.base_model(input_ids=pieces)
                if turn > 0:  # the first turn warms up
                    seconds[name].append(time.perf_counter() - start)
    return {
        name: _TIMED_BLOCKS * length / statistics.median(times) for name, times in seconds.items()
    }


@contextmanager
def _cpu_threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cost_table(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    *,
    pieces_per_word: float,
    threads: int | None = None,
) -> Table:
    """Compare teacher and student. Timing them takes some seconds.

    pieces_per_word: see `sample_text.pieces_per_word`. threads: see `pieces_per_second`.
    """
    models = {"teacher": teacher, "student": student}
    length = min(BLOCK_SIZE, longest_window(teacher.config.to_dict()))
    speeds = pieces_per_second(models, length=length, threads=threads)
    columns = []
    for name, model in models.items():
        shape, size = shape_of(model.config), encoder_size(model)
        columns.append(
            {
                "layers": f"{shape.layers}",
                "heads x size": f"{shape.heads} x {shape.head_size}",
                "feed-forward neurons": f"{shape.ffn:,}",
                "width": f"{shape.width:,}",
                "parameters": f"{size.embeddings + size.layers:,}",
                "  in the embeddings": f"{size.embeddings:,}",
                "  in the layers": f"{size.layers:,}",
                "size, float32": megabytes(size.n_bytes),
                "size, int8 (estimated)": megabytes(size.int8_bytes),
                f"MFLOP per piece, blocks of {length}": (
                    f"{encoder_flops(model.config, length) / 1e6:.2f}"
                ),
                "pieces/s here": f"{speeds[name]:,.0f}",
                "words/s here": f"{speeds[name] / pieces_per_word:,.0f}",
            }
        )
    rows = [[row, *(column[row] for column in columns)] for row in columns[0]]
    return Table("Encoders without masked-LM head", ["", *models], rows)
