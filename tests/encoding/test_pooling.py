from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thinc.api import NumpyOps

from spacy_distil.encoding import POOLINGS, Pooling
from spacy_distil.encoding.pooling import PoolingName

OPS = NumpyOps()
WIDTH = 3


def dense(kind: str, first: np.ndarray, last: np.ndarray, row_pieces: np.ndarray) -> np.ndarray:
    """The matrix (n_tokens, n_rows), entry by entry."""
    matrix = np.zeros((len(first), len(row_pieces)))
    for t, (start, end) in enumerate(zip(first, last, strict=True)):
        pieces = list(range(start, end))[: 1 if kind == "first" else None]
        for piece in pieces:
            rows = [r for r, of in enumerate(row_pieces) if of == piece]
            for row in rows:
                matrix[t, row] += 1 / len(pieces) / len(rows)
    return matrix


@st.composite
def alignments(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens with any range of pieces, and rows in which each piece stands at least once."""
    n_pieces = draw(st.integers(0, 12))
    bound = st.integers(0, n_pieces)
    spans = draw(st.lists(st.tuples(bound, bound).map(sorted), max_size=10))
    columns = np.array(spans, dtype=np.int64).reshape(-1, 2)
    twice = draw(st.lists(st.integers(0, max(0, n_pieces - 1)), max_size=8)) if n_pieces else []
    rows = draw(st.permutations([*range(n_pieces), *twice]))
    return columns[:, 0], columns[:, 1], np.array(rows, dtype=np.int64)


@pytest.mark.parametrize("kind", POOLINGS)
@given(alignment=alignments(), seed=st.integers(0, 100))
@settings(max_examples=200, deadline=None)
def test_pooling_is_a_matrix_product(
    kind: PoolingName, alignment: tuple[Any, Any, Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pooling = Pooling.from_alignment(kind, *alignment)
    matrix = dense(kind, *alignment)
    rows: Any = rng.normal(size=(matrix.shape[1], WIDTH)).astype("f")
    d_tokens: Any = rng.normal(size=(matrix.shape[0], WIDTH)).astype("f")
    tokens: Any = pooling.forward(OPS, rows)
    d_rows: Any = pooling.backward(OPS, d_tokens)
    assert tokens.dtype == d_rows.dtype == np.float32
    assert tokens.shape == d_tokens.shape
    assert d_rows.shape == rows.shape
    np.testing.assert_allclose(tokens, matrix @ rows, atol=1e-5)
    np.testing.assert_allclose(d_rows, matrix.T @ d_tokens, atol=1e-5)


@pytest.mark.parametrize("kind", POOLINGS)
def test_a_token_without_pieces_is_zero_and_passes_no_gradient(kind: PoolingName) -> None:
    first, last = np.array([0, 2, 2]), np.array([2, 2, 3])
    pooling = Pooling.from_alignment(kind, first, last, np.arange(3))
    ones: Any = np.ones((3, WIDTH), dtype="f")
    assert not pooling.forward(OPS, ones)[1].any()
    d_tokens: Any = np.zeros((3, WIDTH), dtype="f")
    d_tokens[1] = 5
    assert not pooling.backward(OPS, d_tokens).any()


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("n_tokens", [0, 3])
def test_no_pieces_at_all(kind: PoolingName, n_tokens: int) -> None:
    none = np.zeros(n_tokens, dtype=np.int64)
    pooling = Pooling.from_alignment(kind, none, none, np.zeros(0, dtype=np.int64))
    assert pooling.forward(OPS, OPS.alloc2f(0, WIDTH)).tolist() == [[0.0] * WIDTH] * n_tokens
    assert pooling.backward(OPS, OPS.alloc2f(n_tokens, WIDTH)).shape == (0, WIDTH)
