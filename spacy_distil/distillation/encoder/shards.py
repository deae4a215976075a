"""Blocks of pieces on disk: rows of equal length in numbered files of numpy's own format.

Rows are read by position. Mapped files would be simpler, but their pages count as memory of the
process. It would seem to grow to the size of the corpus, and the system might kill it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from io import FileIO
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import IO

import numpy as np

from spacy_distil.errors import CorpusError

# Size of a shard, and number of blocks written at a time.
SHARD_BYTES = 64 << 20
WRITTEN_ROWS = 1_000


def piece_type(largest: int) -> np.dtype:
    """The type for ids of pieces up to `largest`, little-endian on every machine."""
    return np.dtype("<u2" if largest < 1 << 16 else "<i4")


def shard_path(directory: Path, number: int) -> Path:
    return directory / f"blocks-{number:05}.npy"


def write_shards(
    blocks: Iterable[Sequence[int]],
    directory: Path,
    *,
    block_size: int,
    dtype: np.dtype,
    limit: int | None = None,
) -> tuple[int, int]:
    """Write blocks to shards.

    blocks: ids of `block_size` pieces each. The last block may be shorter; it is padded with zeros.
    directory: an existing one.
    dtype: see `piece_type`.
    limit: maximum number of blocks.
    RETURNS: numbers of blocks and of pieces.
    """
    per_shard = max(1, SHARD_BYTES // (block_size * dtype.itemsize))
    n_blocks = n_pieces = number = 0
    blocks = islice(blocks, limit)
    for first in blocks:  # no shard without a row
        shard = islice(chain([first], blocks), per_shard)
        rows, pieces = _write_shard(shard_path(directory, number), shard, block_size, dtype)
        n_blocks, n_pieces, number = n_blocks + rows, n_pieces + pieces, number + 1
    return n_blocks, n_pieces


def _write_shard(
    path: Path, blocks: Iterator[Sequence[int]], block_size: int, dtype: np.dtype
) -> tuple[int, int]:
    n_rows = n_pieces = 0
    with path.open("wb") as file:
        _write_header(file, (0, block_size), dtype)
        while group := list(islice(blocks, WRITTEN_ROWS)):
            rows = np.zeros((len(group), block_size), dtype)
            for row, block in zip(rows, group, strict=True):
                row[: len(block)] = block
            file.write(rows.data)
            n_rows += len(group)
            n_pieces += sum(map(len, group))
        file.seek(0)
        _write_header(file, (n_rows, block_size), dtype)
    return n_rows, n_pieces


def _write_header(file: IO[bytes], shape: tuple[int, int], dtype: np.dtype) -> None:
    """Write a header, whose size does not depend on the number of rows."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


class Shards:
    """Reads the rows in a directory.

    Threads and forked processes may read at the same time, as no file stays open between two calls.

    n_rows, n_pieces: as `write_shards` returned them.
    """

    def __init__(self, directory: Path, n_rows: int, n_pieces: int) -> None:
        self.directory = directory
        self.n_rows = n_rows
        (self.per_shard, self.block_size), self.dtype, self.offset = _read_header(directory, 0)
        self.last_length = n_pieces - (n_rows - 1) * self.block_size
        self._check()

    def __len__(self) -> int:
        return self.n_rows

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Numbers of pieces in rows, without reading them. rows: (n,). RETURNS: (n,) int64."""
        return np.where(rows == self.n_rows - 1, self.last_length, self.block_size)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read rows. rows: (n,) int64, from 0, in any order. RETURNS: (n, block_size), padded."""
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        shards = ordered // self.per_shard
        pieces = np.empty((len(rows), self.block_size), self.dtype)
        # Neighbours in one shard are read at once.
        breaks = np.flatnonzero((np.diff(ordered) != 1) | (np.diff(shards) != 0)) + 1
        for number in np.unique(shards):
            first, end = np.searchsorted(shards, [number, number + 1])
            inside = breaks[(breaks > first) & (breaks < end)]
            path = shard_path(self.directory, number)
            try:
                with path.open("rb", buffering=0) as file:
                    for start, stop in pairwise([first, *inside, end]):
                        row = int(ordered[start] - number * self.per_shard)
                        file.seek(self.offset + row * self._row_bytes)
                        _fill(file, pieces[start:stop].data.cast("B"))
            except OSError as error:
                raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error
        result = np.empty_like(pieces)
        result[order] = pieces
        return result

    @property
    def _row_bytes(self) -> int:
        return self.block_size * self.dtype.itemsize

    def _check(self) -> None:
        """Raise `CorpusError` unless each shard exists and has all its rows."""
        for number, start in enumerate(range(0, self.n_rows, self.per_shard)):
            n_rows = min(self.per_shard, self.n_rows - start)
            shape, dtype, offset = _read_header(self.directory, number)
            size = offset + n_rows * self._row_bytes
            path = shard_path(self.directory, number)
            if (shape, dtype, offset) != ((n_rows, self.block_size), self.dtype, self.offset):
                raise _damaged(path, f"it has {shape} pieces of {dtype}")
            if path.stat().st_size != size:
                raise _damaged(path, f"it has {path.stat().st_size:,} bytes instead of {size:,}")


def _read_header(directory: Path, number: int) -> tuple[tuple[int, int], np.dtype, int]:
    """Read the shape and the type of a shard, and the offset of its rows in bytes."""
    path = shard_path(directory, number)
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            n_rows, block_size = shape
            if not n_rows:
                raise ValueError("it has no rows")
            return (n_rows, block_size), dtype, file.tell()
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _fill(file: FileIO, space: memoryview) -> None:
    """Read until `space` is full. One call of `readinto` may read less."""
    while len(space):
        n_bytes = file.readinto(space)
        if not n_bytes:
            raise _damaged(Path(str(file.name)), "it ends too early")
        space = space[n_bytes:]


def _damaged(path: Path, reason: object) -> CorpusError:
    return CorpusError(
        f"{path} is missing or damaged ({reason}). Delete {path.parent}, and the next run "
        "tokenizes the corpus again"
    )
