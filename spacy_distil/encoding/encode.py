"""Encode docs as windows of pieces, together with the pooling back to tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from spacy.attrs import LENGTH, SPACY  # type: ignore[import-not-found]
from spacy.tokens import Doc

from spacy_distil.encoding.alignment import align, token_offsets
from spacy_distil.encoding.pieces import PieceTokenizer
from spacy_distil.encoding.pooling import DocPooling, Pooling, PoolingName
from spacy_distil.encoding.windows import split_windows

# The tokenizer of pieces reads the text of a doc, or each of its tokens by itself.
PiecesFrom = Literal["text", "tokens"]
PIECES_FROM: tuple[str, ...] = get_args(PiecesFrom)


@dataclass(frozen=True)
class DocText:
    """The text and tokens of a doc. Unlike the doc, they do not change, and outlive a memory zone.

    text: without the space after the last token, which some tokenizers would make a piece of.
    sizes: (n_tokens, 2) int64, the characters of each token, and of the space after it.
    """

    text: str
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    def split(self) -> list[str]:
        """List the tokens, each with the space before it; whitespace tokens are empty."""
        begins = np.append(0, self.sizes.sum(axis=1).cumsum())[:-1]
        spaces = np.append(0, self.sizes[:-1, 1])
        bounds = zip(begins - spaces, begins + self.sizes[:, 0], strict=True)
        tokens = [self.text[begin:end] for begin, end in bounds]
        return ["" if token.isspace() else token for token in tokens]


def read_docs(docs: Iterable[Doc | DocText]) -> list[DocText]:
    """Read text and tokens of each doc."""
    return [doc if isinstance(doc, DocText) else _read(doc) for doc in docs]


def _read(doc: Doc) -> DocText:
    text = doc.text
    if len(doc) and doc[-1].whitespace_:
        text = text[:-1]
    return DocText(text, doc.to_array([LENGTH, SPACY]).astype(np.int64).reshape(-1, 2))


@dataclass(frozen=True)
class EncodedDocs:
    """Docs as windows of pieces, ready for an engine.

    windows: piece ids of each window, (n,) int64.
    n_windows: number of windows of each doc.
    first, last: (n_tokens of all docs,) int64, the pieces of each token, as `align` returns them,
        but numbered across all docs. A token without pieces may point behind its doc's.
    row_pieces: (n_rows,) int64, the piece that each row of all windows encodes.
    pooling: maps the rows of all windows, in order, to the tokens of all docs, in order. With
        `has_docs` the vector of each doc comes after its tokens'.
    n_tokens: number of tokens of each doc.
    special: whether special pieces have rows of the pooling, too, as in the pooling "cls". They
        have none in `row_pieces`.
    has_docs: whether docs have a vector, too.
    """

    windows: list[np.ndarray]
    n_windows: list[int]
    first: np.ndarray
    last: np.ndarray
    row_pieces: np.ndarray
    pooling: Pooling
    n_tokens: list[int]
    special: bool
    has_docs: bool = False

    @property
    def n_vectors(self) -> list[int]:
        """Number of vectors of each doc."""
        return [n + self.has_docs for n in self.n_tokens]

    def token_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """List all rows of each token, whether the pooling uses them or not.

        RETURNS (rows, n_rows): (n_entries,) int64, grouped by token; and the number of rows of each
            token, (n_tokens of all docs,) int32.
        """
        entries = Pooling.from_alignment("sum", self.first, self.last, self.row_pieces)
        return entries.columns, entries.lengths

    def places(self, n_prefix: int, n_special: int) -> np.ndarray:
        """Do the same as `special_places` for these windows."""
        return special_places(
            np.array([len(window) for window in self.windows], dtype=np.int64), n_prefix, n_special
        )


def encode_docs(
    docs: Sequence[Doc | DocText],
    tokenizer: PieceTokenizer,
    *,
    window: int,
    overlap: int,
    pooling: PoolingName,
    pieces_from: PiecesFrom = "text",
    doc_pooling: DocPooling | None = None,
    blank_windows: bool = False,
) -> EncodedDocs:
    """Cut docs into windows of pieces.

    window: most pieces in a window, special pieces included.
    overlap: pieces that two neighbouring windows of a long doc share.
    pieces_from: whether the tokenizer reads the "text" of a doc, or its "tokens", each by itself.
    doc_pooling: how the vector of a doc is made; None for no such vector.
    blank_windows: whether a doc that has tokens but no pieces gets a window of special pieces. If
        not, it has no window. With the pooling "cls", or with `doc_pooling`, it always has one.
    """
    capacity = window - tokenizer.n_special
    special = pooling == "cls" or doc_pooling is not None
    texts = read_docs(docs)
    n_tokens = [len(doc) for doc in texts]
    split = _split_tokens if pieces_from == "tokens" else _split_text
    ids, first, last, n_pieces = split(texts, n_tokens, tokenizer)
    windows: list[np.ndarray] = []
    n_windows: list[int] = []
    row_pieces: list[np.ndarray] = []
    token = piece = 0
    for n, n_own in zip(n_tokens, n_pieces, strict=True):
        bounds = [(0, n_own)] if n_own else []
        if n_own > capacity:
            own = slice(token, token + n)
            bounds = split_windows(
                n_own, first[own] - piece, last[own] - piece, capacity=capacity, overlap=overlap
            )
        elif not n_own and (blank_windows or special) and n and tokenizer.n_special:
            bounds = [(0, 0)]
        n_windows.append(len(bounds))
        for start, end in bounds:
            windows.append(ids[piece + start : piece + end])
            row_pieces.append(np.arange(piece + start, piece + end))
        token += n
        piece += n_own
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *row_pieces])
    window_sizes = np.array([len(window) for window in windows], dtype=np.int64)
    if pooling == "cls":
        counts = np.array(n_windows, dtype=np.int64)
        pools = Pooling.of_windows(
            first,
            last,
            rows,
            window_sizes=window_sizes,
            first_windows=np.repeat(np.cumsum(counts) - counts, n_tokens),
            n_special=tokenizer.n_special,
        )
    else:
        pools = Pooling.from_alignment(pooling, first, last, rows)
    if doc_pooling is not None:
        n_prefix, n_special = len(tokenizer.prefix), tokenizer.n_special
        docs_pooling = Pooling.of_docs(
            doc_pooling,
            rows,
            window_sizes=window_sizes,
            n_windows=n_windows,
            n_prefix=n_prefix,
            n_special=n_special,
        )
        if pooling != "cls":
            places = special_places(window_sizes, n_prefix, n_special)
            pools = pools.at(places, docs_pooling.n_rows)
        pools = pools.with_docs(docs_pooling, n_tokens)
    return EncodedDocs(
        windows,
        n_windows,
        first,
        last,
        rows,
        pools,
        n_tokens,
        special,
        has_docs=doc_pooling is not None,
    )


def special_places(window_sizes: np.ndarray, n_prefix: int, n_special: int) -> np.ndarray:
    """Compute the place of each row in a matrix that also has rows for special pieces.

    window_sizes: (n_windows,) pieces of each window, without special ones.
    n_prefix: number of special pieces before the pieces of a window.
    n_special: number of special pieces before and after them.
    RETURNS: (n_rows,) int64.
    """
    windows = np.repeat(np.arange(len(window_sizes)), window_sizes)
    return np.arange(len(windows)) + n_prefix + n_special * windows


@dataclass(frozen=True)
class SplitText:
    """The pieces of one text.

    ids: (n_pieces,) int64.
    first, last: (n_tokens,) int64, the pieces of each token.
    """

    ids: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def windows(self, capacity: int, overlap: int) -> list[tuple[int, int]]:
        """Cut the pieces into windows of at most `capacity` pieces, see `split_windows`."""
        overlap = min(overlap, capacity // 2)
        return split_windows(
            len(self.ids), self.first, self.last, capacity=capacity, overlap=overlap
        )


def split_pieces(
    texts: Sequence[DocText], tokenizer: PieceTokenizer, pieces_from: PiecesFrom
) -> list[SplitText]:
    """Split each text into pieces, all in one call, and align them with its tokens."""
    n_tokens = [len(text) for text in texts]
    split = _split_tokens if pieces_from == "tokens" else _split_text
    ids, first, last, n_pieces = split(texts, n_tokens, tokenizer)
    found, token, piece = [], 0, 0
    for n, n_own in zip(n_tokens, n_pieces, strict=True):
        own = slice(token, token + n)
        found.append(
            SplitText(
                ids[piece : piece + n_own],
                np.clip(first[own] - piece, 0, n_own),
                np.clip(last[own] - piece, 0, n_own),
            )
        )
        token, piece = token + n, piece + n_own
    return found


def _split_text(
    texts: Sequence[DocText], n_tokens: Sequence[int], tokenizer: PieceTokenizer
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Split the texts of docs into pieces, and align them with the tokens.

    RETURNS (ids, first, last, n_pieces): ids of all pieces; first and last as in `EncodedDocs`;
        the number of pieces of each doc.
    """
    pieces, begins, n_pieces = tokenizer.pack([doc.text for doc in texts])
    sizes = np.concatenate([np.zeros((0, 2), dtype=np.int64), *(doc.sizes for doc in texts)])
    first, last = align(*token_offsets(sizes, n_tokens, begins), pieces)
    return pieces.ids, first, last, n_pieces.tolist()


def _split_tokens(
    texts: Sequence[DocText], n_tokens: Sequence[int], tokenizer: PieceTokenizer
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Split each token of docs into pieces. RETURNS: as `_split_text`."""
    ids, lengths = tokenizer.pack_tokens([doc.split() for doc in texts])
    ends = np.append(0, np.cumsum(lengths))
    bounds = np.cumsum([0, *n_tokens])
    return ids, ends[:-1], ends[1:], np.diff(ends[bounds]).tolist()
