"""Align pieces with tokens by overlap of characters, many to many."""

from __future__ import annotations

import numpy as np
from spacy.attrs import LENGTH, SPACY  # type: ignore[import-not-found]
from spacy.tokens import Doc

from spacy_distil.encoding.pieces import Pieces


def token_offsets(doc: Doc) -> tuple[np.ndarray, np.ndarray]:
    """Compute the character offsets of the tokens of a doc.

    RETURNS (starts, ends): each (n_tokens,) int64, end exclusive.
    """
    attrs = doc.to_array([LENGTH, SPACY]).astype(np.int64).reshape(-1, 2)
    lengths, spaces = attrs[:, 0], attrs[:, 1]
    ends = np.cumsum(lengths + spaces) - spaces
    return ends - lengths, ends


def align(
    token_starts: np.ndarray, token_ends: np.ndarray, pieces: Pieces
) -> tuple[np.ndarray, np.ndarray]:
    """Find the range of pieces that overlap each token.

    token_starts, token_ends: (n_tokens,) character offsets.
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
