"""Building the blocks of a corpus, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]
from wasabi import msg

from spacy_distil.distillation.encoder.shards import piece_type, write_shards
from spacy_distil.errors import CorpusError
from spacy_distil.runs.files import STALE_AFTER, atomic_directory, flush, free_bytes
from spacy_distil.tables import megabytes
from spacy_distil.text import packing
from spacy_distil.text import plain_text as reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The file with the numbers of blocks and pieces.
COUNTS = "source.json"
# Of text, about.
BYTES_PER_PIECE = 4
# One part in so many of a file is taken to be text at the least.
LEAST_SHARE = 4


@dataclass(frozen=True)
class Plan:
    """Files that are to become blocks.

    setting: where they come from, for errors. limit: of blocks. fingerprint: see `Source`.
    """

    setting: str
    files: list[Path]
    limit: int | None
    fingerprint: str


def build(
    plan: Plan, directory: Path, *, tokenizer: PreTrainedTokenizerFast, block_size: int
) -> None:
    """Write blocks under a temporary name, then rename: what is in the cache is whole.

    directory: in the cache, for the blocks and `COUNTS`. If it is there without `COUNTS`, something
        else has removed a part of it, and it is replaced.
    """
    dtype = piece_type(max(tokenizer.get_vocab().values()))
    needed = _predict_bytes(plan, block_size, dtype)
    _check_room(plan, directory.parent, needed)
    with _writing(plan, directory.parent, needed):
        if directory.exists() and not (directory / COUNTS).exists():
            shutil.rmtree(directory)
        with atomic_directory(directory, replace=False) as unfinished:
            parts = _touching(unfinished, _read_files(plan))
            n_blocks, n_pieces = write_shards(
                packing.pack(
                    packing.tokenize(parts, tokenizer),
                    block_size=block_size,
                    first=tokenizer.cls_token_id,
                    last=tokenizer.sep_token_id,
                ),
                unfinished,
                block_size=block_size,
                dtype=dtype,
                limit=plan.limit,
            )
            if n_blocks == 0:
                raise CorpusError(f"{plan.setting}: no text in {', '.join(map(str, plan.files))}")
            counts = json.dumps({"blocks": n_blocks, "pieces": n_pieces})
            (unfinished / COUNTS).write_text(counts, encoding="utf-8")
            flush(unfinished / COUNTS)


def _read_files(plan: Plan) -> Iterator[reading.Part]:
    """The text of all files, with a progress bar on terminals."""
    sizes = [reading.file_size(path) for path in plan.files]
    with tqdm(
        desc=f"Tokenising {plan.setting}",
        total=sum(sizes),
        unit="B",
        unit_scale=True,
        leave=False,
        disable=None,
    ) as bar:
        end = 0
        for path, size in zip(plan.files, sizes, strict=True):
            end += size
            for part in reading.read_parts(path):
                yield part
                # A file may hold more than its text, or its text compressed.
                bar.update(min(len(part.text.encode()), end - bar.n))
            bar.update(end - bar.n)


def _touching(directory: Path, parts: Iterator[reading.Part]) -> Iterator[reading.Part]:
    """Hand the parts on, and mark the directory as alive, even where nothing is written for long.

    See `STALE_AFTER`.
    """
    touched = time.monotonic()
    for part in parts:
        if time.monotonic() - touched > STALE_AFTER / 10:
            os.utime(directory)
            touched = time.monotonic()
        yield part


def _predict_bytes(plan: Plan, block_size: int, dtype: np.dtype) -> int:
    """About how much disk the blocks will take where the files hold little but text."""
    n_pieces = sum(map(reading.file_size, plan.files)) // BYTES_PER_PIECE
    if plan.limit is not None:
        n_pieces = min(n_pieces, plan.limit * block_size)
    return n_pieces * dtype.itemsize


def _check_room(plan: Plan, cache: Path, needed: int) -> None:
    """Refuse what is sure not to fit. A JSONL file may be metadata for the most part."""
    free = free_bytes(cache)
    if free >= needed:
        return
    found = (
        f"{plan.setting}: its blocks need about {megabytes(needed)}, but the disk of {cache} has "
        f"{megabytes(free)} free."
    )
    if free < needed / LEAST_SHARE:
        raise CorpusError(f"{found} {_OTHER_DISK}")
    msg.warn(f"{found} They will fit only if much of the files is not text.")


@contextmanager
def _writing(plan: Plan, cache: Path, needed: int) -> Iterator[None]:
    """Turn what the system raises, such as of a full disk, into a `CorpusError`.

    What it raises of the corpus' own files is one already.
    """
    try:
        yield
    except OSError as error:
        raise CorpusError(
            f"{plan.setting}: its blocks cannot be written to {cache}: {error.strerror or error}. "
            f"They need about {megabytes(needed)}; {megabytes(free_bytes(cache))} are free "
            f"there, and nothing unfinished was left behind. {_OTHER_DISK}"
        ) from error


_OTHER_DISK = "Make room there, or give a directory on another disk as corpus.cache"
