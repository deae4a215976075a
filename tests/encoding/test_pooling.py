from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import thinc.api
from hypothesis import given, settings
from hypothesis import strategies as st
from thinc.api import NumpyOps
from thinc.types import Ragged

from spacy_distil.encoding import Pooling
from spacy_distil.encoding.pooling import REDUCTIONS, Reduction

OPS = NumpyOps()
WIDTH = 3


def reduced(kind: str, entries: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the vector of one token from the rows of its pieces, (n, WIDTH), in order."""
    if not len(entries):
        return np.zeros(WIDTH)
    return {
        "mean": (entries * weights[:, None]).sum(axis=0),
        "first": entries[0],
        "last": entries[-1],
        "sum": entries.sum(axis=0),
        "max": entries.max(axis=0),
    }[kind]


def naive(
    kind: str, rows: np.ndarray, first: np.ndarray, last: np.ndarray, row_pieces: np.ndarray
) -> np.ndarray:
    """Compute token vectors, (n_tokens, WIDTH) float64, token by token and piece by piece."""
    tokens = []
    for start, end in zip(first, last, strict=True):
        columns, weights = [], []
        for piece in range(start, end):
            own = [row for row, of in enumerate(row_pieces) if of == piece]
            columns += own
            weights += [1 / (end - start) / len(own)] * len(own)
        entries = rows[np.array(columns, dtype=int)].astype("d")
        tokens.append(reduced(kind, entries, np.array(weights)))
    return np.array(tokens).reshape(-1, WIDTH)


@st.composite
def alignments(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw tokens with any range of pieces, and at least one row for each piece."""
    n_pieces = draw(st.integers(0, 12))
    bound = st.integers(0, n_pieces)
    spans = draw(st.lists(st.tuples(bound, bound).map(sorted), max_size=10))
    columns = np.array(spans, dtype=np.int64).reshape(-1, 2)
    twice = draw(st.lists(st.integers(0, max(0, n_pieces - 1)), max_size=8)) if n_pieces else []
    rows = draw(st.permutations([*range(n_pieces), *twice]))
    return columns[:, 0], columns[:, 1], np.array(rows, dtype=np.int64)


@pytest.mark.parametrize("kind", REDUCTIONS)
@given(alignment=alignments(), seed=st.integers(0, 100))
@settings(max_examples=60)
def test_forward_and_backward_against_loops_and_differences(
    kind: Reduction, alignment: tuple[Any, Any, Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    n_tokens, n_rows = len(alignment[0]), len(alignment[2])
    # Numbers far enough from each other that no step below changes which is the largest.
    numbers = rng.permutation(n_rows * WIDTH) - n_rows * WIDTH / 2
    rows: Any = numbers.reshape(n_rows, WIDTH).astype("f")
    tokens: Any
    tokens, backprop = Pooling.from_alignment(kind, *alignment).forward(OPS, rows)
    assert tokens.dtype == np.float32
    assert tokens.shape == (n_tokens, WIDTH)
    np.testing.assert_allclose(tokens, naive(kind, rows, *alignment), atol=1e-4)

    d_tokens: Any = rng.normal(size=(n_tokens, WIDTH)).astype("f")
    d_rows: Any = backprop(d_tokens)
    assert d_rows.dtype == np.float32
    expected = np.zeros(rows.shape)
    for index in np.ndindex(*rows.shape):
        up, down = rows.astype("d"), rows.astype("d")
        up[index] += 0.25
        down[index] -= 0.25
        difference = naive(kind, up, *alignment) - naive(kind, down, *alignment)
        expected[index] = (difference * d_tokens).sum() / 0.5
    np.testing.assert_allclose(d_rows, expected, atol=1e-5)


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_windows_overlap_as_in_spacy_transformers(kind: Reduction) -> None:
    """Its alignment lists the pieces of a token window by window, and a reduce layer of thinc reads
    them in that order.
    """
    # Tokens of 1, 2 and 1 pieces; the second stands in both windows, pieces 0-2 and 1-3.
    first, last = np.array([0, 1, 3]), np.array([1, 3, 4])
    row_pieces = np.array([0, 1, 2, 1, 2, 3])
    rows: Any = np.random.default_rng(0).normal(size=(6, WIDTH)).astype("f")
    lengths: Any = np.array([1, 4, 1], dtype="i")
    entries = Ragged(rows, lengths)
    reference = getattr(thinc.api, f"reduce_{kind}")().predict(entries)
    tokens: Any
    tokens, _ = Pooling.from_alignment(kind, first, last, row_pieces).forward(OPS, rows)
    np.testing.assert_allclose(tokens, reference, atol=1e-6)


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_a_token_without_pieces_is_zero_and_passes_no_gradient(kind: Reduction) -> None:
    first, last = np.array([0, 2, 2]), np.array([2, 2, 3])
    pooling = Pooling.from_alignment(kind, first, last, np.arange(3))
    # Negative, so that a zero is not the largest.
    rows: Any = np.full((3, WIDTH), -1.0, dtype="f")
    tokens: Any
    tokens, backprop = pooling.forward(OPS, rows)
    assert not tokens[1].any()
    assert tokens[[0, 2]].all()
    d_tokens: Any = np.zeros((3, WIDTH), dtype="f")
    d_tokens[1] = 5
    assert not backprop(d_tokens).any()


@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize("n_tokens", [0, 3])
def test_no_pieces_at_all(kind: Reduction, n_tokens: int) -> None:
    none = np.zeros(n_tokens, dtype=np.int64)
    pooling = Pooling.from_alignment(kind, none, none, np.zeros(0, dtype=np.int64))
    tokens: Any
    tokens, backprop = pooling.forward(OPS, OPS.alloc2f(0, WIDTH))
    assert tokens.tolist() == [[0.0] * WIDTH] * n_tokens
    assert backprop(OPS.alloc2f(n_tokens, WIDTH)).shape == (0, WIDTH)
