"""Rows of pieces in files: writing, and reading by position."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacy_distil.distillation.encoder import shards
from spacy_distil.distillation.encoder.shards import Shards, piece_type, shard_path, write_shards
from spacy_distil.errors import CorpusError

WIDTH = 4
forked = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")


def rows_of(n: int, *, width: int = WIDTH) -> list[list[int]]:
    """No two pieces are the same."""
    return np.arange(n * width).reshape(n, width).tolist()


def written(directory: Path, blocks: list[list[int]], *, per_shard: int) -> Shards:
    width = len(blocks[0])
    with mock.patch.object(shards, "SHARD_BYTES", per_shard * width * 2):
        counts = write_shards(iter(blocks), directory, block_size=width, dtype=piece_type(9))
    assert counts == (len(blocks), sum(map(len, blocks)))
    return Shards(directory, *counts)


# Writing


@settings(max_examples=40)
@given(
    n_rows=st.integers(1, 12),
    last=st.integers(1, WIDTH),
    per_shard=st.integers(1, 5),
    order=st.lists(st.integers(0, 11), max_size=20),
    largest=st.sampled_from([100, 100_000]),
)
def test_written_rows_are_read(
    n_rows: int, last: int, per_shard: int, order: list[int], largest: int
) -> None:
    blocks = rows_of(n_rows)
    blocks[0][0] = largest
    blocks[-1] = blocks[-1][:last]
    dtype = piece_type(largest)
    rows = np.array([row % n_rows for row in order], dtype=np.int64)
    with (
        TemporaryDirectory() as path,
        mock.patch.object(shards, "SHARD_BYTES", per_shard * WIDTH * dtype.itemsize),
    ):
        counts = write_shards(blocks, Path(path), block_size=WIDTH, dtype=dtype)
        assert len(list(Path(path).glob("*.npy"))) == -(-n_rows // per_shard)
        found = Shards(Path(path), *counts)
        read = found.read(rows)
    assert read.dtype == dtype
    assert read.shape == (len(rows), WIDTH)
    lengths = found.lengths(rows)
    assert [row[:n].tolist() for row, n in zip(read, lengths, strict=True)] == [
        blocks[row] for row in rows
    ]


def test_numpy_reads_the_files(tmp_path: Path) -> None:
    written(tmp_path, [*rows_of(6), [7, 8]], per_shard=3)
    files = sorted(tmp_path.glob("*.npy"))
    arrays = [np.load(path) for path in files]
    assert [path.name for path in files] == [
        "blocks-00000.npy",
        "blocks-00001.npy",
        "blocks-00002.npy",
    ]
    assert all(array.dtype == np.uint16 for array in arrays)
    assert [len(array) for array in arrays] == [3, 3, 1]
    assert np.concatenate(arrays).tolist() == [*rows_of(6), [7, 8, 0, 0]]


def test_pieces_take_two_bytes_if_they_fit() -> None:
    assert [piece_type(n).str for n in (0, 65_535, 65_536, 250_001)] == ["<u2", "<u2", "<i4", "<i4"]


def test_number_of_blocks_is_limited(tmp_path: Path) -> None:
    blocks = iter(rows_of(5))
    dtype = piece_type(9)
    assert write_shards(blocks, tmp_path, block_size=WIDTH, dtype=dtype, limit=3) == (3, 12)
    assert next(blocks) == rows_of(5)[3]  # no block was consumed in vain


# Reading


@pytest.fixture
def many_rows(tmp_path: Path) -> Shards:
    """500 rows in 8 shards."""
    return written(tmp_path, rows_of(500, width=32), per_shard=70)


def read_at_random(many_rows: Shards, seed: int, times: int) -> bool:
    """Whether all rows are read correctly."""
    rng = np.random.default_rng(seed)
    for _ in range(times):
        rows = rng.integers(0, len(many_rows), 40)
        if not np.array_equal(many_rows.read(rows), rows[:, None] * 32 + np.arange(32)):
            return False
    return True


def test_threads_read_at_once(many_rows: Shards) -> None:
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda seed: read_at_random(many_rows, seed, 200), (1, 2)))


@forked
def test_forked_processes_read_at_once(many_rows: Shards) -> None:
    """Forked while a thread is reading."""
    stop = threading.Event()
    right = []

    def keep_reading() -> None:
        while not stop.is_set():
            right.append(read_at_random(many_rows, 3, 1))

    def read_and_exit(seed: int) -> None:
        sys.exit(0 if read_at_random(many_rows, seed, 200) else 1)

    reader = threading.Thread(target=keep_reading)
    reader.start()
    children = [get_context("fork").Process(target=read_and_exit, args=(seed,)) for seed in (4, 5)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    stop.set()
    reader.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert right
    assert all(right)


def test_memory_does_not_grow_with_what_is_read(tmp_path: Path) -> None:
    """Reading 100 MB. The pages of a mapped file would count as memory."""
    rows, width = 100_000, 512
    for number in range(2):
        np.save(shard_path(tmp_path, number), np.ones((rows // 2, width), dtype=np.uint16))
    corpus = Shards(tmp_path, rows, rows * width)
    order = np.random.default_rng(0).permutation(rows)
    before = psutil.Process().memory_info().rss
    for start in range(0, rows, 500):
        assert corpus.read(order[start : start + 500]).all()
    assert psutil.Process().memory_info().rss - before < 30e6


# Damaged files


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def make_float(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float32))


def make_narrow(path: Path) -> None:
    np.save(path, np.load(path)[:, 1:])


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("damage", [Path.unlink, shorten, make_float, make_narrow, Path.touch])
def test_damage_is_seen_at_once(
    tmp_path: Path, number: int, damage: Callable[[Path], None]
) -> None:
    written(tmp_path, rows_of(8), per_shard=3)
    path = shard_path(tmp_path, number)
    if damage is Path.touch:
        path.write_bytes(b"")
    damage(path)
    with pytest.raises(CorpusError, match=r"blocks-0000\d\.npy is missing or damaged.*Delete "):
        Shards(tmp_path, 8, 8 * WIDTH)


def test_a_shard_that_is_deleted_while_in_use(tmp_path: Path) -> None:
    corpus = written(tmp_path, rows_of(8), per_shard=3)
    corpus.read(np.arange(8))
    shorten(shard_path(tmp_path, 1))
    assert corpus.read(np.array([3, 7])).tolist() == [rows_of(8)[3], rows_of(8)[7]]
    with pytest.raises(CorpusError, match=r"blocks-00001\.npy .* \(it ends too early"):
        corpus.read(np.array([0, 5]))
    shard_path(tmp_path, 1).unlink()
    with pytest.raises(CorpusError, match=r"blocks-00001\.npy cannot be read: No such file"):
        corpus.read(np.array([0, 5]))
