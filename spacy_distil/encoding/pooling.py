"""Pool piece vectors to token vectors, and pass gradients back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from thinc.api import Ops
from thinc.types import Floats2d

# Of the pieces of a token.
Reduction = Literal["mean", "first", "last", "sum", "max"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
PoolingName = Reduction | Literal["cls"]
POOLINGS: tuple[str, ...] = (*REDUCTIONS, "cls")
# Of all pieces of a doc, special ones included.
DocPooling = Literal["mean", "first", "max"]
DOC_POOLINGS: tuple[str, ...] = get_args(DocPooling)

# Takes the gradient of the token vectors, or of their first columns only, and returns the gradient
# of the piece vectors, (n_rows, width).
Backprop = Callable[[Floats2d], Floats2d]


@dataclass(frozen=True)
class Pooling:
    """The rows that make up each token's vector, and their weights.

    Each piece of each window has a row, so a piece in the overlap of two windows has two rows. Both
    count, in the order of the windows, as in the reductions of spacy-transformers. A token without
    pieces gets a zero vector and passes no gradient, except in the pooling "cls", in which special
    pieces have rows, too.

    columns: (n_entries,) int64, the row of each entry, grouped by token.
    weights: (n_entries,) float32. A token's vector is the weighted sum of the rows of its entries.
        None if it is their maximum instead, number by number.
    lengths: (n_tokens,) int32, number of entries of each token.
    n_rows: number of rows of all windows.
    """

    columns: np.ndarray
    weights: np.ndarray | None
    lengths: np.ndarray
    n_rows: int

    @classmethod
    def from_alignment(
        cls, kind: Reduction, first: np.ndarray, last: np.ndarray, row_pieces: np.ndarray
    ) -> Pooling:
        """Build the pooling from an alignment.

        kind: the "mean" of a token's pieces, only the "first" or the "last" of them, their "sum",
            or their "max".
        first, last: (n_tokens,) pieces of each token, as `align` returns them.
        row_pieces: (n_rows,) the piece that each row encodes; every piece has a row.
        """
        order = np.argsort(row_pieces, kind="stable")
        rows_per_piece = np.bincount(row_pieces, minlength=int(last.max(initial=0)))
        bounds = np.concatenate([[0], np.cumsum(rows_per_piece)])
        # A token's rows are order[begins:ends].
        begins, ends = bounds[first], bounds[last]
        if kind == "first":
            ends = np.minimum(ends, begins + 1)
        elif kind == "last":
            begins = np.maximum(begins, ends - 1)
        lengths = ends - begins
        columns = order[np.repeat(begins, lengths) + _count_up(lengths)]
        weights = None
        if kind == "mean":
            # Each piece has the same weight, however many windows it is in.
            pieces = np.repeat(last - first, lengths)
            weights = (1.0 / (pieces * rows_per_piece[row_pieces[columns]])).astype("f")
        elif kind != "max":
            weights = np.ones(len(columns), dtype="f")
        return cls(columns, weights, lengths.astype("i"), len(row_pieces))

    @classmethod
    def of_windows(
        cls,
        first: np.ndarray,
        last: np.ndarray,
        row_pieces: np.ndarray,
        *,
        window_sizes: np.ndarray,
        first_windows: np.ndarray,
        n_special: int,
    ) -> Pooling:
        """Build the pooling "cls": the vector of a token is the first row of its window, a special
        piece.

        The window of a token is the first one that has its first piece. A token without pieces
        is in the window of the token before it. Without such a token it is in the first one.

        first, last, row_pieces: as in `from_alignment`; special pieces have no place in them.
        window_sizes: (n_windows,) pieces of each window, without special ones.
        first_windows: (n_tokens,) the first window of each token's doc.
        n_special: number of special pieces around each window. They have rows, too.
        """
        own = cls.from_alignment("first", first, last, row_pieces)
        windows = first_windows.copy()
        windows[own.lengths > 0] = np.repeat(np.arange(len(window_sizes)), window_sizes)[
            own.columns
        ]
        sizes = window_sizes + n_special
        # Windows are in the order of their tokens.
        columns = (np.cumsum(sizes) - sizes)[np.maximum.accumulate(windows)]
        n = len(columns)
        return cls(columns, np.ones(n, dtype="f"), np.ones(n, dtype="i"), int(sizes.sum()))

    @classmethod
    def of_docs(
        cls,
        kind: DocPooling,
        row_pieces: np.ndarray,
        *,
        window_sizes: np.ndarray,
        n_windows: Sequence[int],
        n_prefix: int,
        n_special: int,
    ) -> Pooling:
        """Build the pooling of whole docs, (n_docs, width). A doc without windows gets zeros.

        kind: the "mean" of all pieces, special ones included, as most sentence encoders pool; the
            "first" piece of the first window, a special one where the family has it; or the "max"
            of all pieces, number by number. In the mean of several windows each piece counts once,
            and special pieces count as in one window.
        row_pieces: (n_rows,) the piece of each row that is not special.
        window_sizes: (n_windows of all docs,) pieces of each window, without special ones.
        n_windows: number of windows of each doc.
        n_prefix, n_special: number of special pieces before, and before and after, the pieces of a
            window. They have rows, too.
        """
        sizes = window_sizes + n_special
        counts = np.array(n_windows, dtype=np.int64)
        n_rows = int(sizes.sum())
        doc_of_window = np.repeat(np.arange(len(counts)), counts)
        doc_of_row = np.repeat(doc_of_window, sizes)
        if kind == "max":
            lengths = np.bincount(doc_of_row, minlength=len(counts)).astype("i")
            return cls(np.arange(n_rows), None, lengths, n_rows)
        if kind == "first":
            begins = np.append(0, np.cumsum(sizes))[np.cumsum(counts) - counts]
            lengths = (np.bincount(doc_of_row, minlength=len(counts)) > 0).astype("i")
            columns = begins[lengths > 0]
            return cls(columns, np.ones(len(columns), dtype="f"), lengths, n_rows)
        # How many rows encode the same piece, or the same special piece of a doc.
        shares = np.repeat(counts[doc_of_window], sizes)
        ordinary = _count_up(sizes) - n_prefix
        is_ordinary = (ordinary >= 0) & (ordinary < np.repeat(window_sizes, sizes))
        shares[is_ordinary] = np.bincount(row_pieces)[row_pieces] if len(row_pieces) else 0
        totals = np.bincount(doc_of_row, weights=1 / shares, minlength=len(counts))
        weights = (1 / (shares * totals[doc_of_row])).astype("f")
        lengths = np.bincount(doc_of_row, minlength=len(counts)).astype("i")
        return cls(np.arange(n_rows), weights, lengths, n_rows)

    def at(self, places: np.ndarray, n_rows: int) -> Pooling:
        """Return the pooling over a matrix with more rows.

        places: (self.n_rows,) the place of each row in it.
        """
        return replace(self, columns=places[self.columns], n_rows=n_rows)

    def with_docs(self, docs: Pooling, n_tokens: Sequence[int]) -> Pooling:
        """Give each doc one more vector, after the vectors of its tokens.

        docs: of the same rows to docs.
        n_tokens: number of tokens of each doc.
        RETURNS: of the rows to (n_tokens of all docs + n_docs) vectors.
        """
        sizes = np.array(n_tokens, dtype=np.int64)
        # The numbers are tokens first, then docs. A stable sort puts each doc behind its tokens.
        keys = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), np.arange(len(sizes))])
        order = np.argsort(keys, kind="stable")
        if self.weights is None or docs.weights is None:
            return MixedPooling.join(self, docs, order)
        lengths = np.concatenate([self.lengths, docs.lengths])
        bounds = np.append(0, np.cumsum(lengths, dtype=np.int64))
        lengths = lengths[order]
        entries = np.repeat(bounds[:-1][order], lengths) + _count_up(lengths)
        columns = np.concatenate([self.columns, docs.columns])
        weights = np.concatenate([self.weights, docs.weights])
        return Pooling(columns[entries], weights[entries], lengths.astype("i"), self.n_rows)

    def forward(self, ops: Ops, rows: Floats2d) -> tuple[Floats2d, Backprop]:
        """Pool piece vectors, (n_rows, width), to token vectors, (n_tokens, width)."""
        if self.weights is None:
            return self._forward_max(ops, rows)
        entries = rows[to_ops(ops, self.columns)] * to_ops(ops, self.weights)[:, None]
        return _sum_groups(ops, entries, self.lengths), partial(self._backprop_sum, ops)

    def _backprop_sum(self, ops: Ops, d_tokens: Floats2d) -> Floats2d:
        assert self.weights is not None
        tokens = np.repeat(np.arange(len(self.lengths)), self.lengths)
        order, per_row = self._by_row()
        entries = d_tokens[to_ops(ops, tokens[order])] * to_ops(ops, self.weights[order])[:, None]
        return _sum_groups(ops, entries, per_row)

    def _forward_max(self, ops: Ops, rows: Floats2d) -> tuple[Floats2d, Backprop]:
        tokens = ops.alloc2f(len(self.lengths), rows.shape[1])
        # thinc does not accept empty groups.
        owners = np.flatnonzero(self.lengths)
        which: Any = None
        if len(owners):
            index, lengths = to_ops(ops, owners), to_ops(ops, self.lengths[owners])
            tokens[index], which = ops.reduce_max(rows[to_ops(ops, self.columns)], lengths)
        return tokens, partial(self._backprop_max, ops, which)

    def _backprop_max(self, ops: Ops, which: Any, d_tokens: Floats2d) -> Floats2d:
        """Pass gradients to the entry with the maximum.

        which: (n_owners, width) int32, the index of that entry among its token's entries, for each
            token that has entries; None if no token has any.
        """
        owners = np.flatnonzero(self.lengths)
        if not len(owners):
            return ops.alloc2f(self.n_rows, d_tokens.shape[1])
        index, lengths = to_ops(ops, owners), to_ops(ops, self.lengths[owners])
        which = ops.as_contig(which[:, : d_tokens.shape[1]])
        entries = ops.backprop_reduce_max(d_tokens[index], which, lengths)
        order, per_row = self._by_row()
        return _sum_groups(ops, entries[to_ops(ops, order)], per_row)

    def _by_row(self) -> tuple[np.ndarray, np.ndarray]:
        """Group the entries by row instead of by token, so that the gradient of a row is a sum
        without scattered additions.

        RETURNS (order, per_row): the order of the entries, (n_entries,), and the number of entries
            of each row, (n_rows,).
        """
        order = np.argsort(self.columns, kind="stable")
        return order, np.bincount(self.columns, minlength=self.n_rows).astype("i")


@dataclass(frozen=True)
class MixedPooling(Pooling):
    """The vectors of two poolings of the same rows, in one order: sums and maxima, or two maxima.

    columns, weights, lengths: of the vectors in this order, without weights.
    parts: the two poolings.
    order: (n_vectors,) int64, the number of each vector. The vectors of the first part have the
        lower numbers.
    """

    parts: tuple[Pooling, Pooling]
    order: np.ndarray

    @classmethod
    def join(cls, first: Pooling, second: Pooling, order: np.ndarray) -> MixedPooling:
        """Put two poolings into one order."""
        lengths = np.concatenate([first.lengths, second.lengths])[order]
        columns = np.concatenate([first.columns, second.columns])
        return cls(columns, None, lengths, first.n_rows, (first, second), order)

    def forward(self, ops: Ops, rows: Floats2d) -> tuple[Floats2d, Backprop]:
        first, second = (part.forward(ops, rows) for part in self.parts)
        order = to_ops(ops, self.order)
        vectors: Any = ops.xp.concatenate([first[0], second[0]])[order]

        def backprop(d_vectors: Floats2d) -> Floats2d:
            d_parts: Any = ops.alloc2f(*d_vectors.shape)
            d_parts[order] = d_vectors
            n = len(self.parts[0].lengths)
            return first[1](d_parts[:n]) + second[1](d_parts[n:])

        return vectors, backprop


def split_docs(tokens: Floats2d, n_tokens: Sequence[int]) -> list[Floats2d]:
    """Split the packed token vectors of several docs, (n_tokens of all docs, width), into views."""
    ends = np.cumsum(n_tokens)
    return [tokens[end - n : end] for n, end in zip(n_tokens, ends, strict=True)]


def to_ops(ops: Ops, array: np.ndarray) -> Any:
    """Convert a numpy array to an array of `ops`. thinc's stubs do not accept numpy arrays."""
    return ops.asarray(array)  # type: ignore[arg-type]


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """Number the members of each group from 0 on: (lengths.sum(),) int64."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths)


def _sum_groups(ops: Ops, entries: Any, lengths: np.ndarray) -> Floats2d:
    if len(entries) == 0:
        return ops.alloc2f(len(lengths), entries.shape[1])
    return ops.reduce_sum(entries, to_ops(ops, lengths))
