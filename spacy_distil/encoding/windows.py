"""Split a doc into windows: ranges of pieces that are encoded together."""

from __future__ import annotations

import numpy as np


def split_windows(
    n_pieces: int, first: np.ndarray, last: np.ndarray, *, capacity: int, overlap: int
) -> list[tuple[int, int]]:
    """Cut the pieces of one doc into windows of at most `capacity` pieces.

    A doc that fits is one window. A longer doc is cut between tokens. Each window begins with the
    last `overlap` pieces of the window before it (or a few more, to begin with a token). Only a
    token longer than a whole window is cut inside.

    first, last: (n_tokens,) pieces of each token, as `align` returns them.
    RETURNS: (start, end) of each window, in order. Together the windows cover every piece.
    """
    if n_pieces == 0:
        return []
    if n_pieces <= capacity:
        return [(0, n_pieces)]
    cuts = _cut_points(first, last)
    windows = []
    start = 0
    while True:
        end = start + capacity
        if end >= n_pieces:
            windows.append((start, n_pieces))
            return windows
        end = _last_cut(cuts, after=start, until=end)
        if windows and end <= windows[-1][1]:
            # The overlap leaves no room for the next token.
            start = end
            continue
        windows.append((start, end))
        start = _last_cut(cuts, after=start, until=max(end - overlap, start + 1), otherwise=end)


def _cut_points(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Find the pieces at which a window may begin: no token lies on both sides."""
    has_piece = last > first
    first, last = first[has_piece], last[has_piece]
    reached = np.maximum.accumulate(last)
    # The first piece of a token, unless an earlier token shares it.
    free = np.ones(len(first), dtype=bool)
    free[1:] = first[1:] >= reached[:-1]
    return first[free]


def _last_cut(cuts: np.ndarray, *, after: int, until: int, otherwise: int | None = None) -> int:
    """Return the largest cut in (after, until], else `otherwise`, which is `until` by default."""
    i = int(np.searchsorted(cuts, until, side="right")) - 1
    if i >= 0 and cuts[i] > after:
        return int(cuts[i])
    return until if otherwise is None else otherwise
