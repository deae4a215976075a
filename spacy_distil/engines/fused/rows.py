"""Compiled steps behind an encoder: tokens sum its rows, and heads multiply token vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from thinc.api import Model, NumpyOps

from spacy_distil.encoding import Pooling
from spacy_distil.engines.fused import library

# The most columns that `HeadOps` computes. With more of them and few tokens, BLIS is faster.
MOST_COLUMNS = 256


def sum_rows(rows: np.ndarray, pooling: Pooling, n_tokens: Sequence[int]) -> list[np.ndarray]:
    """Sum the weighted rows of each token.

    rows: (n_rows, width) float32, contiguous.
    pooling: with weights.
    n_tokens: number of tokens of each doc.
    RETURNS: an array of its own for each doc, (n_tokens, width) float32.
    """
    compiled = library.load()
    assert compiled is not None
    assert pooling.weights is not None
    # The compiled part reads these without looking.
    columns = np.ascontiguousarray(pooling.columns, np.int64)
    weights = np.ascontiguousarray(pooling.weights, np.float32)
    lengths = np.ascontiguousarray(pooling.lengths, np.int32)
    width = rows.shape[1]
    ends = np.cumsum(n_tokens)
    entries = np.append(0, np.cumsum(lengths))
    docs = []
    for end, n in zip(ends.tolist(), n_tokens, strict=True):
        first, entry = end - n, int(entries[end - n])
        vectors = np.empty((n, width), np.float32)
        compiled.pool(
            rows.ctypes.data,
            width,
            n,
            lengths.ctypes.data + first * lengths.itemsize,
            columns.ctypes.data + entry * columns.itemsize,
            weights.ctypes.data + entry * weights.itemsize,
            vectors.ctypes.data,
        )
        docs.append(vectors)
    return docs


class HeadOps(NumpyOps):
    """Multiplies token vectors by the weights of a head, which has few outputs.

    BLIS, as thinc comes with it, has no fast products for such matrices. Of a compiled product, a
    token's result does not depend on the other tokens, to the last bit.
    """

    def gemm(
        self, x: Any, y: Any, *, out: Any = None, trans1: bool = False, trans2: bool = False
    ) -> Any:
        compiled = library.load()
        if compiled is None or out is not None or trans1 or not trans2 or not _fit(x, y):
            return super().gemm(x, y, out=out, trans1=trans1, trans2=trans2)
        n, n_in = x.shape
        n_out = len(y)
        packed = library.empty(4 * n_in * (-(-n_out // 16) * 16))
        result = np.empty((n, n_out), np.float32)
        x, y = np.ascontiguousarray(x), np.ascontiguousarray(y)
        compiled.multiply_rows(
            x.ctypes.data, n, n_in, y.ctypes.data, n_out, packed.ctypes.data, result.ctypes.data
        )
        return result


def use_head_ops(model: Model) -> None:
    """Have a head compute with `HeadOps`, unless it is on a GPU or has operations of its own."""
    for node in model.walk():
        ops: Any = node.ops
        if type(ops) is NumpyOps and ops.use_blis:
            node.ops = HeadOps()


def _fit(x: Any, y: Any) -> bool:
    """Whether the compiled product takes x y^T."""
    return (
        x.dtype == y.dtype == np.float32
        and x.ndim == y.ndim == 2
        and x.shape[1] == y.shape[1]
        and len(y) <= MOST_COLUMNS
    )
