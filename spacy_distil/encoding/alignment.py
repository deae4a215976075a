"""Align pieces with tokens by overlap of characters, many to many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spacy_distil.encoding.pieces import Pieces


def token_offsets(
    sizes: np.ndarray, n_tokens: Sequence[int], begins: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the character offsets of the tokens of docs.

    sizes: (n_tokens of all docs, 2), characters of each token, and of the space after it.
    n_tokens: number of tokens of each doc.
    begins: (n_docs,) the character at which each doc begins.
    RETURNS (starts, ends): each (n_tokens of all docs,) int64, end exclusive.
    """
    lengths, spaces = sizes.T
    after = np.append(0, np.cumsum(lengths + spaces))
    firsts = np.cumsum([0, *n_tokens])[:-1]
    starts = after[:-1] + np.repeat(begins - after[firsts], n_tokens)
    return starts, starts + lengths


def align(
    token_starts: np.ndarray, token_ends: np.ndarray, pieces: Pieces
) -> tuple[np.ndarray, np.ndarray]:
    """Find the range of pieces that overlap each token.

    token_starts, token_ends: (n_tokens,) character offsets into the text of the pieces.
    RETURNS (first, last): each (n_tokens,) int64. The pieces of token t are first[t]:last[t]. This
        range is empty for a token without a piece (whitespace, control characters). A piece may
        lie in the ranges of several tokens.
    """
    # A byte-level tokenizer also makes pieces of spaces. They have no characters.
    own = np.flatnonzero(pieces.ends > pieces.starts)
    first = np.searchsorted(pieces.ends[own], token_starts, side="right")
    last = np.searchsorted(pieces.starts[own], token_ends, side="left")
    if len(own) == len(pieces.ids):
        return first, np.maximum(first, last)
    begins = np.append(own, len(pieces.ids))[first]
    ends = np.append(0, own + 1)[last]
    return begins, np.maximum(begins, ends)
