from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacy_distil.encoding.windows import split_windows


def ranges(lengths: list[int], shared: list[bool]) -> tuple[int, np.ndarray, np.ndarray]:
    """Make tokens of these numbers of pieces. If `shared`, a token begins with the last piece of
    the token before.
    """
    first, last, end = [], [], 0
    for length, share in zip(lengths, shared, strict=True):
        start = end - 1 if share and length and end else end
        first.append(start)
        last.append(max(end, start + length) if length else start)
        end = max(end, last[-1])
    return end, np.array(first, dtype=np.int64), np.array(last, dtype=np.int64)


TOKENS = st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=60).map(
    lambda rows: ranges([row[0] for row in rows], [row[1] for row in rows])
)


@given(tokens=TOKENS, capacity=st.integers(1, 20), overlap=st.integers(0, 25))
@settings(max_examples=500)
def test_windows_cover_everything_and_cut_between_tokens(
    tokens: tuple[int, np.ndarray, np.ndarray], capacity: int, overlap: int
) -> None:
    n_pieces, first, last = tokens
    windows = split_windows(n_pieces, first, last, capacity=capacity, overlap=overlap)
    if n_pieces == 0:
        assert windows == []
        return
    assert windows[0][0] == 0
    assert windows[-1][1] == n_pieces
    assert all(0 < end - start <= capacity for start, end in windows)
    for (start, end), (next_start, next_end) in pairwise(windows):
        # Nothing is left out between two windows, and none lies within another.
        assert start < next_start <= end < next_end
    longest = max(_chains(first, last), default=0)
    if longest <= capacity:
        for start, end in windows:
            for cut in (start, end):
                assert not ((first < cut) & (cut < last)).any()


def _chains(first: np.ndarray, last: np.ndarray) -> list[int]:
    """Return the sizes of the groups of tokens that share pieces and cannot be cut."""
    groups: list[list[int]] = []
    for a, b in zip(first, last, strict=True):
        if a == b:
            continue
        if groups and a < groups[-1][1]:
            groups[-1][1] = max(groups[-1][1], b)
        else:
            groups.append([a, b])
    return [b - a for a, b in groups]


@given(n=st.integers(0, 300), capacity=st.integers(1, 40), overlap=st.integers(0, 40))
@settings(max_examples=200)
def test_neighbouring_windows_share_what_was_asked_for(n: int, capacity: int, overlap: int) -> None:
    first = np.arange(n)
    windows = split_windows(n, first, first + 1, capacity=capacity, overlap=overlap)
    for (start, end), (next_start, _) in pairwise(windows):
        shared = end - next_start
        # As far as there is room to get on.
        assert shared == min(overlap, capacity - 1)
        assert end - start == capacity


def test_a_doc_that_fits_is_one_window() -> None:
    first = np.arange(10)
    assert split_windows(10, first, first + 1, capacity=10, overlap=5) == [(0, 10)]


def test_a_token_longer_than_a_window_is_cut_inside() -> None:
    first, last = np.array([0, 2, 27]), np.array([2, 27, 30])
    windows = split_windows(30, first, last, capacity=10, overlap=3)
    assert windows == [(0, 2), (2, 12), (12, 22), (22, 30)]


def test_the_overlap_gives_way_to_a_token_that_needs_the_room() -> None:
    """Otherwise window 2 would begin at 5 and end at 10, inside window 1."""
    first = np.array([0, 1, 2, 3, 4, 5, 10])
    last = np.array([1, 2, 3, 4, 5, 10, 19])
    windows = split_windows(19, first, last, capacity=10, overlap=4)
    assert windows == [(0, 10), (10, 19)]


@pytest.mark.parametrize("overlap", [0, 4])
def test_a_piece_of_two_tokens_is_no_cut(overlap: int) -> None:
    first, last = np.array([0, 3, 5]), np.array([4, 6, 12])  # tokens 0, 1 and 2 share pieces
    for _, end in split_windows(12, first, last, capacity=12, overlap=overlap):
        assert end == 12
    cuts = {c for w in split_windows(12, first, last, capacity=11, overlap=overlap) for c in w}
    assert cuts >= {0, 11, 12}  # one group of 12 pieces in windows of 11: cut only as it must be
