"""The way of a document, from `Doc` to windows and the pooling back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from spacy.tokens import Doc

from spacy_distil.encoding.alignment import align, token_offsets
from spacy_distil.encoding.pieces import PieceTokenizer
from spacy_distil.encoding.pooling import Pooling, PoolingName
from spacy_distil.encoding.windows import split_windows


@dataclass(frozen=True)
class EncodedDocs:
    """Docs, ready for an engine.

    windows: piece ids of each window, (n,) int64.
    n_windows: number of windows of each doc.
    first, last: (n_tokens of all docs,) int64, the pieces of each token, as `align` returns them,
        but numbered through all docs.
    row_pieces: (n_rows,) int64, the piece that each row of all windows encodes.
    pooling: from the rows of all windows, in order, to the tokens of all docs, in order.
    n_tokens: number of tokens of each doc.
    """

    windows: list[np.ndarray]
    n_windows: list[int]
    first: np.ndarray
    last: np.ndarray
    row_pieces: np.ndarray
    pooling: Pooling
    n_tokens: list[int]

    def token_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows of each token, whatever the pooling makes of them: (n_entries,) int64, grouped
        by token, and the number of those of each, (n_tokens of all docs,) int32.
        """
        entries = Pooling.from_alignment("sum", self.first, self.last, self.row_pieces)
        return entries.columns, entries.lengths

    def places(self, n_prefix: int, n_special: int) -> np.ndarray:
        """Where each row stands where special pieces have rows, too: (n_rows,) int64.

        n_prefix, n_special: special pieces before those of a window, and around them.
        """
        sizes = [len(window) for window in self.windows]
        windows = np.repeat(np.arange(len(sizes)), sizes)
        return np.arange(len(windows)) + n_prefix + n_special * windows


def encode_docs(
    docs: Sequence[Doc],
    tokenizer: PieceTokenizer,
    *,
    window: int,
    overlap: int,
    pooling: PoolingName,
    blank_windows: bool = False,
) -> EncodedDocs:
    """Cut docs into windows of pieces.

    window: most pieces in a window, special pieces included.
    overlap: pieces that two neighbouring windows of a long doc share.
    blank_windows: a doc that has tokens, but no piece, has a window of special pieces alone. Else
        it has none.
    """
    capacity = window - tokenizer.n_special
    windows: list[np.ndarray] = []
    n_windows: list[int] = []
    row_pieces: list[np.ndarray] = []
    firsts: list[np.ndarray] = []
    lasts: list[np.ndarray] = []
    n_pieces = 0
    for doc, pieces in zip(docs, tokenizer([_text(doc) for doc in docs]), strict=True):
        first, last = align(*token_offsets(doc), pieces)
        bounds = split_windows(len(pieces.ids), first, last, capacity=capacity, overlap=overlap)
        if not bounds and blank_windows and len(doc) and tokenizer.n_special:
            bounds = [(0, 0)]
        n_windows.append(len(bounds))
        for start, end in bounds:
            windows.append(pieces.ids[start:end])
            row_pieces.append(np.arange(n_pieces + start, n_pieces + end))
        firsts.append(first + n_pieces)
        lasts.append(last + n_pieces)
        n_pieces += len(pieces.ids)
    alignment = _concatenate(firsts), _concatenate(lasts), _concatenate(row_pieces)
    return EncodedDocs(
        windows,
        n_windows,
        *alignment,
        Pooling.from_alignment(pooling, *alignment),
        [len(doc) for doc in docs],
    )


def _text(doc: Doc) -> str:
    """What its tokens cover: without the space that the last of them may be followed by, of which
    some tokenizers would make a piece.
    """
    text = doc.text
    return text[:-1] if len(doc) and doc[-1].whitespace_ else text


def _concatenate(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)
