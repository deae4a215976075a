"""Piece vectors to token vectors, and gradients the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from thinc.api import Ops
from thinc.types import Floats2d

PoolingName = Literal["mean", "first"]
POOLINGS: tuple[str, ...] = get_args(PoolingName)


@dataclass(frozen=True)
class Pooling:
    """A sparse matrix (n_tokens, n_rows): token vectors are weighted sums of piece vectors.

    One row per piece of each window, so that a piece in the overlap of two windows has two rows,
    which are averaged. A token without pieces is a zero vector and passes no gradient.

    columns: (n_entries,) int64, the row of each entry, grouped by token.
    weights: (n_entries,) float32; they sum to 1 for each token that has pieces.
    lengths: (n_tokens,) int32, number of entries of each token.
    n_rows: number of rows of all windows.
    """

    columns: np.ndarray
    weights: np.ndarray
    lengths: np.ndarray
    n_rows: int

    @classmethod
    def from_alignment(
        cls, kind: PoolingName, first: np.ndarray, last: np.ndarray, row_pieces: np.ndarray
    ) -> Pooling:
        """Build the matrix.

        kind: "mean" of a token's pieces, or its "first" piece alone.
        first, last: (n_tokens,) pieces of each token, as `align` returns them.
        row_pieces: (n_rows,) the piece that each row encodes; every piece has a row.
        """
        if kind == "first":
            last = np.minimum(last, first + 1)
        order = np.argsort(row_pieces, kind="stable")
        rows_per_piece = np.bincount(row_pieces, minlength=int(last.max(initial=0)))
        begins = np.concatenate([[0], np.cumsum(rows_per_piece)])
        lengths = begins[last] - begins[first]
        # Entry k of a token is order[begins[first] + k].
        steps = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        columns = order[np.repeat(begins[first], lengths) + steps]
        weights = 1.0 / (np.repeat(last - first, lengths) * rows_per_piece[row_pieces[columns]])
        return cls(columns, weights.astype("f"), lengths.astype("i"), len(row_pieces))

    def forward(self, ops: Ops, rows: Floats2d) -> Floats2d:
        """Token vectors, (n_tokens, width), of piece vectors, (n_rows, width)."""
        entries = rows[to_ops(ops, self.columns)] * to_ops(ops, self.weights)[:, None]
        return _sum_groups(ops, entries, self.lengths)

    def backward(self, ops: Ops, d_tokens: Floats2d) -> Floats2d:
        """Gradient of the piece vectors, (n_rows, width), of that of the token vectors."""
        tokens = np.repeat(np.arange(len(self.lengths)), self.lengths)
        # Grouped by row instead of by token: a sum per row, with no scattered additions.
        order = np.argsort(self.columns, kind="stable")
        per_row = np.bincount(self.columns, minlength=self.n_rows)
        entries = d_tokens[to_ops(ops, tokens[order])] * to_ops(ops, self.weights[order])[:, None]
        return _sum_groups(ops, entries, per_row.astype("i"))


def split_docs(tokens: Floats2d, n_tokens: Sequence[int]) -> list[Floats2d]:
    """The packed token vectors of several docs, (n_tokens of all, width), doc by doc: views."""
    ends = np.cumsum(n_tokens)
    return [tokens[end - n : end] for n, end in zip(n_tokens, ends, strict=True)]


def to_ops(ops: Ops, array: np.ndarray) -> Any:
    """A numpy array as one of `ops`; thinc's stubs know no other way to say it."""
    return ops.asarray(array)  # type: ignore[arg-type]


def _sum_groups(ops: Ops, entries: Any, lengths: np.ndarray) -> Floats2d:
    if len(entries) == 0:
        return ops.alloc2f(len(lengths), entries.shape[1])
    return ops.reduce_sum(entries, to_ops(ops, lengths))
