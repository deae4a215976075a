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
    pooling: from the rows of all windows, in order, to the tokens of all docs, in order.
    n_tokens: number of tokens of each doc.
    """

    windows: list[np.ndarray]
    pooling: Pooling
    n_tokens: list[int]


def encode_docs(
    docs: Sequence[Doc],
    tokenizer: PieceTokenizer,
    *,
    window: int,
    overlap: int,
    pooling: PoolingName,
) -> EncodedDocs:
    """Cut docs into windows of pieces.

    window: most pieces in a window, special pieces included.
    overlap: pieces that two neighbouring windows of a long doc share.
    """
    capacity = window - tokenizer.n_special
    windows: list[np.ndarray] = []
    row_pieces: list[np.ndarray] = []
    firsts: list[np.ndarray] = []
    lasts: list[np.ndarray] = []
    n_pieces = 0
    for doc, pieces in zip(docs, tokenizer([_text(doc) for doc in docs]), strict=True):
        first, last = align(*token_offsets(doc), pieces)
        for start, end in split_windows(
            len(pieces.ids), first, last, capacity=capacity, overlap=overlap
        ):
            windows.append(pieces.ids[start:end])
            row_pieces.append(np.arange(n_pieces + start, n_pieces + end))
        firsts.append(first + n_pieces)
        lasts.append(last + n_pieces)
        n_pieces += len(pieces.ids)
    return EncodedDocs(
        windows,
        Pooling.from_alignment(
            pooling, _concatenate(firsts), _concatenate(lasts), _concatenate(row_pieces)
        ),
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
