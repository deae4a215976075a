"""From the rows of an encoder to tokens, for sums over pieces."""

from __future__ import annotations

import numpy as np

from spacy_distil.component.shim import EncoderShim
from spacy_distil.encoding import EncodedDocs


class PieceOwners:
    """Which tokens own the piece of each row.

    is_owned: (n_rows,) bool, whether a token does: special pieces have none, nor do pieces of white
        space.
    """

    def __init__(self, encoder: EncoderShim, encoded: EncodedDocs) -> None:
        """encoded: as `encoder.prepare` returns it."""
        self._first, self._last = encoded.first, encoded.last
        n_pieces = int(encoded.row_pieces.max(initial=-1)) + 1
        owned = self._last > self._first
        begins = np.bincount(self._first[owned], minlength=n_pieces + 1)
        ends = np.bincount(self._last[owned], minlength=n_pieces + 1)
        owners = np.cumsum(begins - ends)[:n_pieces]
        self._shares = np.where(owners > 0, 1 / np.maximum(owners, 1), 0.0)
        self._row_pieces = _row_pieces(encoder, encoded)
        self.is_owned: np.ndarray = np.append(self._shares > 0, False)[self._row_pieces]

    def sum_by_token(self, rows: np.ndarray) -> np.ndarray:
        """Sum numbers of rows. Tokens that share a piece divide it.

        rows: (n_rows,).
        RETURNS: (n_tokens,) float64.
        """
        n_pieces = len(self._shares)
        # The last place is for special pieces.
        pieces = np.bincount(self._row_pieces % (n_pieces + 1), rows, n_pieces + 1)[:n_pieces]
        totals = np.append(0, np.cumsum(pieces * self._shares))
        first, last = (np.minimum(each, n_pieces) for each in (self._first, self._last))
        return np.where(last > first, totals[last] - totals[first], 0.0)


def _row_pieces(encoder: EncoderShim, encoded: EncodedDocs) -> np.ndarray:
    """Return the piece of each row of the pooling, (n_rows,); -1 for a special piece."""
    if not encoded.special:
        return encoded.row_pieces
    tokenizer = encoder.loaded.tokenizer
    pieces = np.full(encoded.pooling.n_rows, -1, dtype=np.int64)
    pieces[encoded.places(len(tokenizer.prefix), tokenizer.n_special)] = encoded.row_pieces
    return pieces
