"""What a student costs next to its teacher: parameters, megabytes, operations and speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from spacy_distil.engines.files import longest_window
from spacy_distil.errors import CorpusError
from spacy_distil.students.flops import encoder_flops
from spacy_distil.students.shapes import shape_of
from spacy_distil.tables import Table
from spacy_distil.text import packing
from spacy_distil.text import plain_text as reading
from spacy_distil.text.plain_text import Part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spacy_distil.students.teachers import Teacher

# What importance is measured on and speed with.
BLOCK, N_BLOCKS = 128, 64
# Blocks in a forward pass that is timed, and how many are timed of each model.
TIMED_BLOCKS, ROUNDS = 4, 7
# How much text is read for a block, which is more than a block of any language has, and how much to
# count pieces in.
_BLOCK_CHARACTERS = 16 * BLOCK
_COUNTED_CHARACTERS = 200_000


class Size(NamedTuple):
    """An encoder without its masked-LM head.

    embeddings, layers: parameters; whatever is not in the embeddings counts as the layers'.
    megabytes: of all in float32.
    int8_megabytes: of the ONNX graph that `spacy distil quantize` makes, estimated: products with
        weights and piece embeddings in int8, with a scale for each column and piece.
    """

    embeddings: int
    layers: int
    megabytes: float
    int8_megabytes: float


def size_of(model: PreTrainedModel) -> Size:
    """model: an encoder, with or without a masked-LM head, and without pooler."""
    encoder = model.base_model
    pieces = encoder.get_input_embeddings().weight
    inside = {id(parameter) for parameter in encoder.embeddings.parameters()}
    embeddings = layers = small = 0
    for parameter in encoder.parameters():
        if id(parameter) in inside:
            embeddings += parameter.numel()
        else:
            layers += parameter.numel()
        if parameter is pieces or (parameter.dim() == 2 and id(parameter) not in inside):
            small += parameter.numel() + 4 * len(parameter)
        else:
            small += 4 * parameter.numel()
    return Size(embeddings, layers, 4e-6 * (embeddings + layers), 1e-6 * small)


def pieces_per_second(
    models: Mapping[str, PreTrainedModel], *, length: int = BLOCK, threads: int | None = None
) -> dict[str, float]:
    """Speed of some encoders on this machine's CPU, in float32, on random pieces.

    They take turns, so that whatever else the machine does slows down all alike; the median counts.

    length: of the blocks.
    threads: of the CPU; `None` is torch's own choice.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with _threads(threads), torch.inference_mode():
        for turn in range(ROUNDS + 1):
            for name, model in models.items():
                # The first pieces of a vocabulary may be special ones.
                pieces = torch.randint(5, model.config.vocab_size, (TIMED_BLOCKS, length))
                start = time.perf_counter()
                model.base_model(input_ids=pieces)
                if turn > 0:  # the first one warms up
                    seconds[name].append(time.perf_counter() - start)
    return {
        name: TIMED_BLOCKS * length / statistics.median(times) for name, times in seconds.items()
    }


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read_blocks(
    path: Path, teacher: Teacher, *, setting: str, n_blocks: int = N_BLOCKS
) -> list[np.ndarray]:
    """Blocks of at most 128 pieces from the beginnings of a corpus' files, as many from each.

    path: file or directory, in the formats of `reading`. setting: its name, for errors.
    """
    files = reading.find_files([path], setting=setting)
    tokenizer = teacher.tokenizer
    blocks: list[np.ndarray] = []
    for number, file in enumerate(files):
        # What a short file lacks, those after it make up for.
        wanted = -(-(n_blocks - len(blocks)) // (len(files) - number))
        packed = packing.pack(
            packing.tokenize(_beginning([file], wanted * _BLOCK_CHARACTERS), tokenizer),
            block_size=min(BLOCK, teacher.longest_block),
            first=int(tokenizer.cls_token_id),
            last=int(tokenizer.sep_token_id),
        )
        blocks += [np.array(block, dtype=np.int32) for block in islice(packed, wanted)]
        if len(blocks) >= n_blocks:
            break
    if not blocks:
        raise CorpusError(f"{setting}: no text in {path}")
    return blocks


def pieces_per_word(path: Path | None, teacher: Teacher, *, setting: str) -> float:
    """How many pieces the teacher's tokenizer makes of a word.

    path: a corpus, of which the beginning counts; `None` takes the English
        example sentences that come with spaCy. setting: its name, for errors.
    """
    import spacy

    if path is None:
        from spacy.lang.en.examples import sentences

        parts = [Part(text, ends=True) for text in sentences]
    else:
        files = reading.find_files([path], setting=setting)
        parts = list(_beginning(files, _COUNTED_CHARACTERS))
    words = spacy.blank("xx")
    n_words = sum(not word.is_space for part in parts for word in words.make_doc(part.text))
    if n_words == 0:
        raise CorpusError(f"{setting}: no text in {path}")
    return sum(len(pieces) for pieces, _ in packing.tokenize(parts, teacher.tokenizer)) / n_words


def _beginning(files: Iterable[Path], characters: int) -> Iterator[Part]:
    """The first documents of some files, as many as have about so many characters."""
    size = 0
    for part in chain.from_iterable(map(reading.read_parts, files)):
        yield part
        size += len(part.text)
        if size > characters:
            return


def report_table(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    *,
    pieces_per_word: float,
    threads: int | None = None,
) -> Table:
    """Teacher and student side by side; it takes some seconds to time them.

    pieces_per_word: see `pieces_per_word`. threads: see `pieces_per_second`.
    """
    models = {"teacher": teacher, "student": student}
    length = min(BLOCK, longest_window(teacher.config.to_dict()))
    speeds = pieces_per_second(models, length=length, threads=threads)
    columns = []
    for name, model in models.items():
        shape, size = shape_of(model.config), size_of(model)
        columns.append(
            {
                "layers": f"{shape.layers}",
                "heads x size": f"{shape.heads} x {shape.head_size}",
                "feed-forward neurons": f"{shape.ffn:,}",
                "width": f"{shape.width:,}",
                "parameters": f"{size.embeddings + size.layers:,}",
                "  of the embeddings": f"{size.embeddings:,}",
                "  of the layers": f"{size.layers:,}",
                "MB, float32": f"{size.megabytes:.1f}",
                "MB, int8 (estimated)": f"{size.int8_megabytes:.1f}",
                f"MFLOP a piece, blocks of {length}": (
                    f"{encoder_flops(model.config, length) / 1e6:.2f}"
                ),
                "pieces/s here": f"{speeds[name]:,.0f}",
                "words/s here": f"{speeds[name] / pieces_per_word:,.0f}",
            }
        )
    rows = [[row, *(column[row] for column in columns)] for row in columns[0]]
    return Table("Encoders without masked-LM head", ["", *models], rows)
