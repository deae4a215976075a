from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import spacy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc
from spacy.vocab import Vocab

from spacy_distil.encoding import PieceTokenizer, read_docs
from spacy_distil.encoding.alignment import align, token_offsets
from spacy_distil.encoding.pieces import Pieces, in_order
from tests.encoding.test_pieces import KINDS, SENTENCEPIECE, TOKENIZERS, naive_offsets
from tests.util import FAMILIES, build_tokenizer

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


@st.composite
def pretokenized(draw: st.DrawFn) -> Doc:
    """Draw a doc whose tokens are cut anywhere, even inside words and combined characters."""
    text = draw(TEXTS)
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=10)))
    bounds = [0, *(cut for cut in cuts if cut < len(text)), len(text)]
    words = [text[a:b] for a, b in pairwise(bounds) if a < b]
    spaces = [draw(st.booleans()) for _ in words]
    return Doc(VOCAB, words=words, spaces=spaces)


DOCS = st.one_of(TEXTS.map(NLP.make_doc), pretokenized())


def overlapping(doc: Doc, offsets: list[tuple[int, int]]) -> list[list[int]]:
    """Find the pieces of each token, character by character."""
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


def offsets_of(*docs: Doc) -> tuple[np.ndarray, np.ndarray]:
    """Character offsets of the tokens of docs, in their texts with a character between them."""
    texts = read_docs(docs)
    begins = np.cumsum([0, *(len(text.text) + 1 for text in texts)])[:-1]
    sizes = np.concatenate([text.sizes for text in texts])
    return token_offsets(sizes, [len(text) for text in texts], begins)


@given(docs=st.lists(DOCS, min_size=1, max_size=4))
@settings(max_examples=50)
def test_token_offsets_of_several_docs(docs: list[Doc]) -> None:
    starts, ends = offsets_of(*docs)
    text = "\n".join(text.text for text in read_docs(docs))
    tokens = [token.text for doc in docs for token in doc]
    assert [text[a:b] for a, b in zip(starts, ends, strict=True)] == tokens


@given(doc=DOCS)
@settings(max_examples=150)
def test_token_offsets_are_those_of_the_text(doc: Doc) -> None:
    starts, ends = offsets_of(doc)
    assert starts.tolist() == [token.idx for token in doc]
    assert [doc.text[a:b] for a, b in zip(starts, ends, strict=True)] == [t.text for t in doc]


@pytest.mark.parametrize("family", KINDS)
@given(doc=DOCS)
@example(doc=Doc(VOCAB))
@example(doc=Doc(VOCAB, words=["un", "believ", "able"], spaces=[False, False, False]))
@example(doc=Doc(VOCAB, words=["a", "   ", "b"], spaces=[True, False, False]))
@settings(max_examples=80)
def test_alignment_is_the_overlap_of_characters(family: str, doc: Doc) -> None:
    offsets = naive_offsets(family, doc.text)
    first, last = align(*offsets_of(doc), TOKENIZERS[family]([doc.text])[0])
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
@settings(max_examples=300)
def test_alignment_is_many_to_many(tokens: list[int], pieces: list[tuple[int, int]]) -> None:
    """Tokens touch. Pieces overlap each other, leave gaps and span several tokens."""
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
    """A normalizer has swapped two marks."""
    offsets = np.array([(0, 1), (2, 3), (1, 2), (3, 4)])
    pieces = in_order(np.array([5, 6, 7, 8]), *offsets.T)
    first, last = align(np.arange(4), np.arange(1, 5), pieces)
    assert list(zip(first, last, strict=True)) == [(0, 1), (1, 3), (1, 3), (3, 4)]


def test_pieces_without_characters_belong_to_no_token() -> None:
    """A byte-level tokenizer makes such pieces of the spaces of "a   b cd", before, in and after
    the token of spaces.
    """
    offsets = [(0, 1), (2, 2), (3, 3), (4, 5), (6, 6), (6, 7), (7, 7), (7, 8), (8, 8)]
    pieces = in_order(np.arange(9), *np.array(offsets).T)
    first, last = align(np.array([0, 2, 4, 6]), np.array([1, 4, 5, 8]), pieces)
    assert [list(range(a, b)) for a, b in zip(first, last, strict=True)] == [
        [0],
        [],
        [3],
        # The range of a token includes the pieces between its own.
        [5, 6, 7],
    ]


def test_a_piece_without_characters_stays_one_where_offsets_step_back() -> None:
    pieces = in_order(np.arange(4), np.array([0, 2, 1, 3]), np.array([2, 2, 3, 4]))
    first, last = align(np.array([0, 2, 3]), np.array([2, 3, 4]), pieces)
    assert pieces.starts[1] == pieces.ends[1]
    assert list(zip(first, last, strict=True)) == [(0, 3), (2, 3), (3, 4)]


WORDS = [
    "Zoë",
    "👩‍👩‍👧",
    "ﬁne",
    "\uff21\uff22\uff23",
    "İo",
    "東京",
    "e\u0301te\u0301",
    "q\u0307\u0323",
    "don\u2019t",
    "x",
    "…",
]


# Byte-level tokenizers have other pieces of a word behind another space.
@pytest.mark.parametrize(
    ("family", "between"),
    [
        (family, between)
        for family in FAMILIES
        for between in (" ", "   ", "\n", " \t", "\u00a0", "\u3000")
        if between == " " or family not in ("roberta", "modernbert")
    ],
)
def test_a_word_has_its_own_pieces(family: str, between: str) -> None:
    """With any number of characters and bytes before it."""
    tokenizer = PieceTokenizer(build_tokenizer(family))
    text = between.join(WORDS)
    ends = np.cumsum([len(word) + len(between) for word in WORDS]) - len(between)
    starts = ends - [len(word) for word in WORDS]
    (pieces,) = tokenizer([text])
    first, last = align(starts, ends, pieces)
    for word, a, b in zip(WORDS[1:], first[1:], last[1:], strict=True):
        (alone,) = tokenizer([f"a {word}"])
        expected = alone.ids[(alone.ends > alone.starts) & (alone.starts >= 2)]
        assert len(expected)
        own = pieces.ends[a:b] > pieces.starts[a:b]
        assert pieces.ids[a:b][own].tolist() == expected.tolist(), word


@pytest.mark.parametrize("family", FAMILIES)
def test_spaces_have_no_pieces(family: str) -> None:
    """They have neither the next word's nor their own. Only RoBERTa has pieces for newlines and
    tabs.
    """
    doc = NLP.make_doc("  Ann   visited \u00a0 東京\t\t Oslo    ☃  x \u3000 ")
    first, last = align(*offsets_of(doc), PieceTokenizer(build_tokenizer(family))([doc.text])[0])
    without = [token.text for token, a, b in zip(doc, first, last, strict=True) if a == b]
    spaces = [token.text for token in doc if token.is_space]
    assert len(spaces) > 4
    if family != "roberta":
        assert without == spaces
    else:
        assert set(without) == {text for text in spaces if not text.strip(" ")}


@pytest.mark.parametrize("family", SENTENCEPIECE)
def test_the_piece_of_a_space_is_not_the_next_word_s(family: str) -> None:
    (pieces,) = TOKENIZERS[family](["Ann Ünü ☃"])
    tokens = [build_tokenizer(family).id_to_token(i) for i in pieces.ids]
    first, last = align(np.array([0, 4, 8]), np.array([3, 7, 9]), pieces)
    alone = [i for i, token in enumerate(tokens) if token == "▁"]
    assert alone
    assert not any(i in range(a, b) for a, b in zip(first, last, strict=True) for i in alone)
    assert (last > first).all()
