"""Pack windows into batches with a budget of pieces, padded or ragged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Batch:
    """Windows that go through the encoder in one forward.

    ids: (n_windows, length) int64, piece ids; special pieces at both ends, padded on the right.
    mask: (n_windows, length) int64, 1 for pieces and special pieces, 0 for padding.
    positions: (n_rows,) int64, positions of the docs' pieces in the flattened (n_windows * length)
        grid. They include special pieces if `make_batches` got `special`, and never padding.
    rows: (n_rows,) int64, the row of each of these pieces in the packed matrix of all windows.
    seconds: (n_windows,) int64, the place in each window at which its second text begins; None for
        windows of one text.
    """

    ids: np.ndarray
    mask: np.ndarray
    positions: np.ndarray
    rows: np.ndarray
    seconds: np.ndarray | None = None


def make_batches(
    windows: Sequence[np.ndarray],
    *,
    prefix: Sequence[int],
    suffix: Sequence[int],
    pad_id: int,
    max_batch_pieces: int,
    special: bool = False,
    length_multiple: int = 1,
    max_length: int | None = None,
    seconds: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Pack windows into batches, longest first.

    windows: piece ids of each window, (n,) int64. Only with `special` may a window be empty.
    prefix, suffix: ids of the special pieces around each window.
    max_batch_pieces: the most padded pieces in a batch, special pieces included. A window that is
        larger is a batch of its own.
    special: whether special pieces have rows too, before and after the pieces of their window.
    length_multiple: batches are padded to a multiple of this length.
    max_length: if that would be longer than this, they are not.
    seconds: (n_windows,) int64, the place in each window at which its second text begins, counted
        from the first special piece of `prefix`; None for windows of one text.
    """
    if not windows:
        return
    sizes = np.array([len(window) for window in windows])
    n_special = len(prefix) + len(suffix)
    n_rows = sizes + n_special if special else sizes
    offsets = np.cumsum(n_rows) - n_rows
    order = np.argsort(-sizes, kind="stable")
    begin = 0
    while begin < len(order):
        # Sorted by length: the first window is the longest of its batch.
        length = int(sizes[order[begin]]) + n_special
        padded = -(-length // length_multiple) * length_multiple
        if max_length is None or padded <= max_length:
            length = padded
        chosen = order[begin : begin + max(1, max_batch_pieces // length)]
        begin += len(chosen)
        column = np.arange(length)
        ends = len(prefix) + sizes[chosen, None]
        own = (column >= len(prefix)) & (column < ends)
        ids = np.full((len(chosen), length), pad_id, dtype=np.int64)
        ids[:, : len(prefix)] = prefix
        ids[own] = np.concatenate([windows[i] for i in chosen])
        for i, piece in enumerate(suffix):
            np.put_along_axis(ids, ends + i, piece, axis=1)
        mask = column < ends + len(suffix)
        yield Batch(
            ids=ids,
            mask=mask.astype(np.int64),
            positions=np.flatnonzero(mask if special else own),
            rows=np.concatenate([np.arange(offsets[i], offsets[i] + n_rows[i]) for i in chosen]),
            seconds=None if seconds is None else seconds[chosen],
        )


@dataclass(frozen=True)
class RaggedBatch:
    """Windows that go through the encoder together, one after the other, without padding.

    ids: (n_pieces,) int32, piece ids; special pieces at both ends of each window.
    lengths: (n_windows,) int32, pieces of each window.
    targets: (n_pieces,) int32, the row of each piece in the packed matrix of all windows; -1 for a
        special piece, which has none unless `make_ragged_batches` got `special`.
    seconds: (n_windows,) int32, the place in each window at which its second text begins; None for
        windows of one text.
    """

    ids: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray
    seconds: np.ndarray | None = None


def make_ragged_batches(
    windows: Sequence[np.ndarray],
    *,
    prefix: Sequence[int],
    suffix: Sequence[int],
    max_batch_pieces: int,
    special: bool = False,
    seconds: np.ndarray | None = None,
) -> Iterator[RaggedBatch]:
    """Pack windows into ragged batches, longest first.

    It takes the arguments of `make_batches`. A window that is larger than `max_batch_pieces` is a
    batch of its own.
    """
    if not windows:
        return
    sizes = np.array([len(window) for window in windows])
    n_rows = sizes + len(prefix) + len(suffix) if special else sizes
    offsets = np.cumsum(n_rows) - n_rows
    order = np.argsort(-sizes, kind="stable")
    lengths = sizes[order] + len(prefix) + len(suffix)
    ends = np.cumsum(lengths)
    begin = 0
    while begin < len(order):
        taken = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, taken + max_batch_pieces, side="right")))
        chosen = order[begin:end]
        ids = [part for i in chosen for part in (prefix, windows[i], suffix)]
        starts = np.repeat(ends[begin:end] - lengths[begin:end] - taken, lengths[begin:end])
        places = np.arange(len(starts)) - starts - (0 if special else len(prefix))
        own = (places >= 0) & (places < np.repeat(n_rows[chosen], lengths[begin:end]))
        targets = np.where(own, np.repeat(offsets[chosen], lengths[begin:end]) + places, -1)
        yield RaggedBatch(
            ids=np.concatenate(ids).astype(np.int32),
            lengths=lengths[begin:end].astype(np.int32),
            targets=targets.astype(np.int32),
            seconds=None if seconds is None else seconds[chosen].astype(np.int32),
        )
        begin = end
