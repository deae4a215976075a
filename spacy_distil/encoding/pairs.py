"""Encode pairs of texts as windows of pieces: both texts in one window, with separators."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from spacy.tokens import Doc

from spacy_distil.encoding.encode import DocText, PiecesFrom, read_docs, split_pieces
from spacy_distil.encoding.pieces import PieceTokenizer
from spacy_distil.encoding.pooling import Pooling

Text = Doc | DocText | str
_WORD = re.compile(r"(\S+)(\s*)")


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs of texts as windows of pieces, ready for an engine.

    A window has special pieces, pieces of the first text, a separator, pieces of the second text,
    and special pieces. Every piece has a row. Most pairs are one window. In a longer pair each part
    of the first text meets each part of the second one.

    windows: piece ids of each window, special ones included, (n,) int64.
    seconds: (n_windows,) int64, the place in each window at which the second text begins.
    n_windows: number of windows of each pair.
    n_tokens: number of tokens of each second text.
    begins, ends: from the rows of all windows to the first, and to the last piece of each token of
        the second texts. A token that several windows have takes the maximum, number by number. A
        token without pieces has no row.
    """

    windows: list[np.ndarray]
    seconds: np.ndarray
    n_windows: list[int]
    n_tokens: list[int]
    begins: Pooling
    ends: Pooling

    @property
    def first_rows(self) -> np.ndarray:
        """The row of the first piece of each window, a special one: (n_windows,) int64."""
        sizes = np.array([len(window) for window in self.windows], dtype=np.int64)
        return np.cumsum(sizes) - sizes

    @property
    def n_rows(self) -> int:
        """Number of rows of all windows."""
        return sum(map(len, self.windows))


def read_text(text: Text) -> DocText:
    """Read a doc, or a string, whose tokens are then its words between spaces."""
    if not isinstance(text, str):
        return read_docs([text])[0]
    text = text.rstrip()
    sizes = [(len(word), len(space)) for word, space in _WORD.findall(text)]
    if begin := len(text) - sum(map(sum, sizes)):  # spaces before the first word
        sizes.insert(0, (begin, 0))
    return DocText(text, np.array(sizes, dtype=np.int64).reshape(-1, 2))


def encode_pairs(
    pairs: Sequence[tuple[Text, Text]],
    tokenizer: PieceTokenizer,
    *,
    window: int,
    overlap: int,
    pieces_from: PiecesFrom = "text",
) -> EncodedPairs:
    """Cut pairs of texts into windows of pieces.

    window: most pieces in a window, special ones included.
    overlap: pieces that two neighbouring windows of a long text share.
    pieces_from: as in `encode_docs`.
    """
    template = tokenizer.pair_template
    capacity = window - template.n_special
    texts = [read_text(text) for pair in pairs for text in pair]
    split = split_pieces(texts, tokenizer, pieces_from)
    windows: list[np.ndarray] = []
    seconds: list[int] = []
    n_windows: list[int] = []
    begins: list[tuple[np.ndarray, np.ndarray]] = []  # tokens and rows
    ends: list[tuple[np.ndarray, np.ndarray]] = []
    row = token = 0
    for first, second in zip(split[::2], split[1::2], strict=True):
        n_first, n_second = _share(len(first.ids), len(second.ids), capacity)
        second_bounds = second.windows(n_second, overlap) or [(0, 0)]
        n_before = len(windows)
        for start, end in first.windows(n_first, overlap) or [(0, 0)]:
            head = [*template.prefix, *first.ids[start:end], *template.middle]
            for second_start, second_end in second_bounds:
                body = second.ids[second_start:second_end]
                windows.append(np.array([*head, *body, *template.suffix], dtype=np.int64))
                seconds.append(len(head))
                offset = row + len(head) - second_start
                for piece, found in ((second.first, begins), (second.last - 1, ends)):
                    has_piece = second.last > second.first
                    own = has_piece & (piece >= second_start) & (piece < second_end)
                    found.append((token + np.flatnonzero(own), offset + piece[own]))
                row += len(windows[-1])
        n_windows.append(len(windows) - n_before)
        token += len(second.first)
    return EncodedPairs(
        windows,
        np.array(seconds, dtype=np.int64),
        n_windows,
        [len(second.first) for second in split[1::2]],
        _maximum(begins, token, row),
        _maximum(ends, token, row),
    )


def _share(n_first: int, n_second: int, capacity: int) -> tuple[int, int]:
    """Share a window: the most pieces of the first and of the second text in it.

    The first text is whole unless it leaves less than half of the window for a long second one.
    """
    first = min(n_first, capacity - min(n_second, capacity // 2))
    return first, capacity - first


def _maximum(found: Sequence[tuple[np.ndarray, np.ndarray]], n_tokens: int, n_rows: int) -> Pooling:
    """Pool the rows of each token by their maximum.

    found: tokens and their rows, (n,) each, window by window.
    """
    none = np.zeros(0, dtype=np.int64)
    tokens = np.concatenate([none, *(tokens for tokens, _ in found)])
    rows = np.concatenate([none, *(rows for _, rows in found)])
    order = np.argsort(tokens, kind="stable")
    lengths = np.bincount(tokens, minlength=n_tokens).astype("i")
    return Pooling(rows[order], None, lengths, n_rows)
