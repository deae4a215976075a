"""Building the blocks of a corpus in the cache, completely or not at all."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]
from wasabi import msg

from spacy_distil.distillation.encoder.shards import piece_type, write_shards
from spacy_distil.errors import CorpusError, WriteError
from spacy_distil.runs.digests import write_sums
from spacy_distil.runs.files import STALE_AFTER, atomic_directory, explain_write_errors, free_bytes
from spacy_distil.tables import megabytes
from spacy_distil.text import packing, plain_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The file with the numbers of blocks and pieces.
COUNTS = "source.json"
# Bytes of text in a piece, roughly.
BYTES_PER_PIECE = 4
# A file is assumed to be text for at least one part in this many.
MAX_BYTES_PER_TEXT_BYTE = 4
_OTHER_DISK = "Or give a directory on another disk as corpus.cache"


@dataclass(frozen=True)
class CorpusPlan:
    """Files to make blocks of.

    setting: the setting that names the files, for errors.
    limit: maximum number of blocks; `None` is no limit.
    fingerprint: see `Source`.
    txt_documents: how .txt files are divided into documents.
    kind: whether to train on them.
    language: name of their language; empty if the config does not tell languages apart.
    """

    setting: str
    files: list[Path]
    limit: int | None
    fingerprint: str
    txt_documents: plain_text.TxtDocuments = "auto"
    kind: Literal["train", "dev"] = "train"
    language: str = ""

    @property
    def name(self) -> str:
        """The kind and the language."""
        return f"{self.kind} {self.language}".rstrip()


def build(
    plan: CorpusPlan, directory: Path, *, tokenizer: PreTrainedTokenizerFast, block_size: int
) -> None:
    """Write the blocks of a corpus, their `COUNTS`, and digests of both.

    directory: in the cache. If it exists without `COUNTS`, something has deleted a part of it, and
        it is replaced.
    """
    dtype = piece_type(max(tokenizer.get_vocab().values()))
    n_bytes = _predict_bytes(plan, block_size, dtype)
    _check_room(plan, directory.parent, n_bytes)
    with _explain_write_errors(directory.parent):
        if directory.exists() and not (directory / COUNTS).exists():
            shutil.rmtree(directory)
        with atomic_directory(directory, replace=False, needed=n_bytes) as unfinished:
            txt = plain_text.TxtFiles(plan.txt_documents)
            parts = _keep_alive(unfinished, _read_files(plan, txt))
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
            write_sums(unfinished)
    txt.tell(msg.info)


def _read_files(plan: CorpusPlan, txt: plain_text.TxtFiles) -> Iterator[plain_text.Part]:
    """Read the text of all files, with a progress bar on terminals."""
    sizes = [plain_text.file_size(path) for path in plan.files]
    with tqdm(
        desc=f"Tokenizing {plan.setting}",
        total=sum(sizes),
        unit="B",
        unit_scale=True,
        leave=False,
        disable=None,  # shows the bar on terminals only
    ) as bar:
        end = 0
        for path, size in zip(plan.files, sizes, strict=True):
            end += size
            for part in plain_text.read_parts(path, txt):
                yield part
                # A file may hold more than its text, or its text compressed.
                bar.update(min(len(part.text.encode()), end - bar.n))
            bar.update(end - bar.n)


def _keep_alive(directory: Path, parts: Iterator[plain_text.Part]) -> Iterator[plain_text.Part]:
    """Touch the directory while parts are read, even if nothing is written for long.

    See `STALE_AFTER`.
    """
    touched = time.monotonic()
    for part in parts:
        if time.monotonic() - touched > STALE_AFTER / 10:
            os.utime(directory)
            touched = time.monotonic()
        yield part


def _predict_bytes(plan: CorpusPlan, block_size: int, dtype: np.dtype) -> int:
    """Estimate the size of the blocks on disk, if the files hold little but text."""
    n_pieces = sum(map(plain_text.file_size, plan.files)) // BYTES_PER_PIECE
    if plan.limit is not None:
        n_pieces = min(n_pieces, plan.limit * block_size)
    return n_pieces * dtype.itemsize


def _check_room(plan: CorpusPlan, cache: Path, n_bytes: int) -> None:
    """Raise `CorpusError` if the blocks cannot fit on the disk; warn if they may not.

    n_bytes: see `_predict_bytes`. A JSONL file may consist of metadata for the most part.
    """
    free = free_bytes(cache)
    if free >= n_bytes:
        return
    problem = (
        f"{plan.setting}: its blocks need about {megabytes(n_bytes)}, but the disk of {cache} has "
        f"{megabytes(free)} free."
    )
    if free < n_bytes / MAX_BYTES_PER_TEXT_BYTE:
        raise CorpusError(f"{problem} Free some space there. {_OTHER_DISK}")
    msg.warn(f"{problem} They will fit only if much of the files is not text.")


@contextmanager
def _explain_write_errors(cache: Path) -> Iterator[None]:
    """Tell after a `WriteError` how to go on."""
    try:
        with explain_write_errors(cache):
            yield
    except WriteError as error:
        kept = "Nothing unfinished was left behind"
        raise error.with_advice(kept, f"start again. {_OTHER_DISK}") from error.__cause__
