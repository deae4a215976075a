from __future__ import annotations

from functools import cache
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import spacy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc
from spacy.vocab import Vocab
from tokenizers import Tokenizer

from spacy_distil.encoding import PieceTokenizer
from spacy_distil.encoding.alignment import align, token_offsets
from spacy_distil.encoding.pieces import Pieces, _to_pieces
from tests.util import build_tokenizer

NLP = spacy.blank("en")
VOCAB = Vocab()

# Emoji sequences, combining marks that normalizers reorder or strip, Chinese, right-to-left text,
# control characters, ligatures and other characters that change their length.
HARD = st.sampled_from(
    [
        "👩‍👩‍👧",
        "🇳🇴",
        "e\u0301",
        "a\u0323\u0307",
        "q\u0307\u0323",
        "東京",
        "שָׁלוֹם",
        "مرحبا",
        "\x00",
        "\u200b",
        "\ufeff",
        "\t\n",
        "\u00a0",
        "İ",
        "ﬁ",
        "ß",
        "①",
        "[SEP]",
        "</s>",
        "unbelievable",
        "don't",
        "  ",
    ]
)
TEXTS = st.lists(st.one_of(st.text(max_size=12), HARD), max_size=8).map("".join)


@cache
def tokenizers(family: str) -> tuple[Tokenizer, PieceTokenizer]:
    raw = build_tokenizer(family)
    raw.encode_special_tokens = True
    return raw, PieceTokenizer(build_tokenizer(family))


@st.composite
def pretokenized(draw: st.DrawFn) -> Doc:
    """A doc whose tokens are cut anywhere, through words and through characters' marks."""
    text = draw(TEXTS)
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=10)))
    bounds = [0, *(cut for cut in cuts if cut < len(text)), len(text)]
    words = [text[a:b] for a, b in pairwise(bounds) if a < b]
    spaces = [draw(st.booleans()) for _ in words]
    return Doc(VOCAB, words=words, spaces=spaces)


DOCS = st.one_of(TEXTS.map(NLP.make_doc), pretokenized())


def overlapping(doc: Doc, offsets: list[tuple[int, int]]) -> list[list[int]]:
    """The pieces of each token, character by character."""
    owners: list[list[int]] = []
    for token in doc:
        pieces = []
        for i, (start, end) in enumerate(offsets):
            for character in range(token.idx, token.idx + len(token.text)):
                if start <= character < end:
                    pieces.append(i)
                    break
        owners.append(pieces)
    return owners


@given(doc=DOCS)
@settings(max_examples=150, deadline=None)
def test_token_offsets_are_those_of_the_text(doc: Doc) -> None:
    starts, ends = token_offsets(doc)
    assert starts.tolist() == [token.idx for token in doc]
    assert [doc.text[a:b] for a, b in zip(starts, ends, strict=True)] == [t.text for t in doc]


@pytest.mark.parametrize("family", ["bert", "roberta"])
@given(doc=DOCS)
@example(doc=Doc(VOCAB))
@example(doc=Doc(VOCAB, words=["un", "believ", "able"], spaces=[False, False, False]))
@example(doc=Doc(VOCAB, words=["a", "   ", "b"], spaces=[True, False, False]))
@settings(max_examples=150, deadline=None)
def test_alignment_is_the_overlap_of_characters(family: str, doc: Doc) -> None:
    raw, tokenizer = tokenizers(family)
    offsets = raw.encode(doc.text, add_special_tokens=False).offsets
    first, last = align(*token_offsets(doc), tokenizer([doc.text])[0])
    found = [list(range(a, b)) for a, b in zip(first, last, strict=True)]
    expected = overlapping(doc, offsets)
    in_order = offsets == sorted(offsets) and all(a[1] <= b[1] for a, b in pairwise(offsets))
    if in_order and all(start < end for start, end in offsets):
        assert found == expected
    else:
        # A range cannot leave out what lies between its pieces, but no overlap is lost.
        for pieces, wanted in zip(found, expected, strict=True):
            assert set(wanted) <= set(pieces)


@given(
    tokens=st.lists(st.integers(0, 4), max_size=12),
    pieces=st.lists(st.tuples(st.integers(-2, 3), st.integers(1, 5)), max_size=12),
)
@settings(max_examples=300, deadline=None)
def test_alignment_is_many_to_many(tokens: list[int], pieces: list[tuple[int, int]]) -> None:
    """Tokens that touch, pieces that overlap each other, leave gaps and span several tokens."""
    ends = np.cumsum(tokens, dtype=np.int64)
    starts = ends - np.array(tokens, dtype=np.int64)
    offsets: list[tuple[int, int]] = []
    for step, length in pieces:
        start = max(0, (offsets[-1][1] if offsets else 0) + step)
        start = max(start, offsets[-1][0] if offsets else 0)
        offsets.append((start, max(start + length, offsets[-1][1] if offsets else 0)))
    columns = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    first, last = align(starts, ends, Pieces(np.zeros(len(offsets)), *columns.T))
    for t, (start, end) in enumerate(zip(starts, ends, strict=True)):
        wanted = [
            i for i, (a, b) in enumerate(offsets) if any(a <= c < b for c in range(start, end))
        ]
        if start < end:
            assert list(range(first[t], last[t])) == wanted


def test_offsets_that_step_back_lose_no_token() -> None:
    """Two marks that a normalizer has put into another order."""
    offsets = [(0, 1), (2, 3), (1, 2), (3, 4)]
    pieces = _to_pieces(SimpleNamespace(ids=[5, 6, 7, 8], offsets=offsets))
    first, last = align(np.arange(4), np.arange(1, 5), pieces)
    assert list(zip(first, last, strict=True)) == [(0, 1), (1, 3), (1, 3), (3, 4)]


def test_pieces_without_characters_belong_to_no_token() -> None:
    """As a byte-level tokenizer makes them of the spaces of "a   b cd", before, in and after the
    token of spaces.
    """
    offsets = [(0, 1), (2, 2), (3, 3), (4, 5), (6, 6), (6, 7), (7, 7), (7, 8), (8, 8)]
    pieces = _to_pieces(SimpleNamespace(ids=list(range(9)), offsets=offsets))
    first, last = align(np.array([0, 2, 4, 6]), np.array([1, 4, 5, 8]), pieces)
    assert [list(range(a, b)) for a, b in zip(first, last, strict=True)] == [
        [0],
        [],
        [3],
        # What lies between the pieces of a token is in its range.
        [5, 6, 7],
    ]
