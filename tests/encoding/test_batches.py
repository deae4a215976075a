from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spacy_distil.encoding import Batch, make_batches, make_ragged_batches

PAD = 0
IDS = st.lists(st.lists(st.integers(100, 999), min_size=1, max_size=20), max_size=15)
SPECIAL = st.lists(st.integers(1, 9), max_size=2)


@given(windows=IDS, prefix=SPECIAL, suffix=SPECIAL, budget=st.integers(1, 120))
@settings(max_examples=300)
def test_each_window_stands_once_in_a_row_of_a_batch(
    windows: list[list[int]], prefix: list[int], suffix: list[int], budget: int
) -> None:
    batches = list(
        make_batches(
            [np.array(window) for window in windows],
            prefix=prefix,
            suffix=suffix,
            pad_id=PAD,
            max_batch_pieces=budget,
        )
    )
    rows = [row for batch in batches for row in lines(batch)]
    assert sorted(rows) == sorted([*prefix, *window, *suffix] for window in windows)
    # Each piece has its row in the packed matrix, exactly once.
    packed = np.full(sum(map(len, windows)), -1)
    for batch in batches:
        assert (packed[batch.rows] == -1).all()
        packed[batch.rows] = batch.ids.ravel()[batch.positions]
    assert packed.tolist() == [piece for window in windows for piece in window]


def lines(batch: Batch) -> list[list[int]]:
    """Return the rows of a batch without padding, which must be on the right."""
    assert batch.ids.shape == batch.mask.shape
    assert batch.ids.dtype == batch.mask.dtype == np.int64
    for ids, mask in zip(batch.ids, batch.mask, strict=True):
        assert (np.diff(mask) <= 0).all()
        assert (ids[mask == 0] == PAD).all()
    return [ids[mask == 1].tolist() for ids, mask in zip(batch.ids, batch.mask, strict=True)]


@given(windows=IDS, budget=st.integers(1, 120))
@settings(max_examples=200)
def test_budget_and_order(windows: list[list[int]], budget: int) -> None:
    batches = list(
        make_batches(
            [np.array(window) for window in windows],
            prefix=[1],
            suffix=[2],
            pad_id=PAD,
            max_batch_pieces=budget,
        )
    )
    for batch in batches:
        assert batch.ids.size <= budget or len(batch.ids) == 1
        assert batch.mask[0].all()  # no wider than its longest window
    lengths = [int(mask.sum()) for batch in batches for mask in batch.mask]
    assert lengths == sorted(lengths, reverse=True)
    for batch, following in pairwise(batches):
        # One more window of the following batch would not have fitted.
        assert batch.ids.size + batch.ids.shape[1] > budget
        assert following.ids.shape[1] <= batch.ids.shape[1]


@given(
    windows=IDS, budget=st.integers(1, 120), multiple=st.integers(1, 9), longest=st.integers(22, 30)
)
@settings(max_examples=200)
def test_lengths_are_multiples_unless_that_is_too_long(
    windows: list[list[int]], budget: int, multiple: int, longest: int
) -> None:
    """longest: of the windows, with two special pieces, at least 22."""
    arrays = [np.array(window) for window in windows]
    batches = list(
        make_batches(
            arrays,
            prefix=[1],
            suffix=[2],
            pad_id=PAD,
            max_batch_pieces=budget,
            length_multiple=multiple,
            max_length=longest,
        )
    )
    packed = np.full(sum(map(len, windows)), -1)
    for batch in batches:
        needed, length = int(batch.mask.sum(axis=1).max()), batch.ids.shape[1]
        padded = -(-needed // multiple) * multiple
        assert length == (padded if padded <= longest else needed)
        assert batch.ids.size <= budget or len(batch.ids) == 1
        packed[batch.rows] = batch.ids.ravel()[batch.positions]
    assert packed.tolist() == [piece for window in windows for piece in window]
    rows = [row for batch in batches for row in lines(batch)]
    assert sorted(rows) == sorted([1, *window, 2] for window in windows)


@given(windows=IDS, prefix=SPECIAL, suffix=SPECIAL, budget=st.integers(1, 120))
@settings(max_examples=300)
def test_ragged_batches(
    windows: list[list[int]], prefix: list[int], suffix: list[int], budget: int
) -> None:
    packed = np.full(sum(map(len, windows)), -1)
    seen, sizes = [], []
    for batch in make_ragged_batches(
        [np.array(window) for window in windows],
        prefix=prefix,
        suffix=suffix,
        max_batch_pieces=budget,
    ):
        arrays = [array for array in vars(batch).values() if array is not None]
        assert {array.dtype for array in arrays} == {np.dtype(np.int32)}
        assert batch.ids.shape == batch.targets.shape
        assert len(batch.lengths) == 1 or batch.lengths.sum() <= budget
        sizes += batch.lengths.tolist()
        for part in np.split(np.arange(len(batch.ids)), np.cumsum(batch.lengths))[:-1]:
            seen.append(batch.ids[part].tolist())
            n_prefix, n_suffix = len(prefix), len(suffix)
            special = [*part[:n_prefix], *part[len(part) - n_suffix :]]
            assert (batch.targets[special] == -1).all()
        own = batch.targets >= 0
        assert (packed[batch.targets[own]] == -1).all()
        packed[batch.targets[own]] = batch.ids[own]
    assert sorted(seen) == sorted([*prefix, *window, *suffix] for window in windows)
    assert sizes == sorted(sizes, reverse=True)
    assert packed.tolist() == [piece for window in windows for piece in window]


@given(windows=IDS, prefix=SPECIAL, suffix=SPECIAL, budget=st.integers(1, 120))
@settings(max_examples=100)
def test_special_pieces_of_ragged_batches_have_rows(
    windows: list[list[int]], prefix: list[int], suffix: list[int], budget: int
) -> None:
    """The same rows as in padded batches."""
    expected = [piece for window in windows for piece in (*prefix, *window, *suffix)]
    packed = np.full(len(expected), -1)
    for batch in make_ragged_batches(
        [np.array(window) for window in windows],
        prefix=prefix,
        suffix=suffix,
        max_batch_pieces=budget,
        special=True,
    ):
        assert (packed[batch.targets] == -1).all()
        packed[batch.targets] = batch.ids
    assert packed.tolist() == expected
