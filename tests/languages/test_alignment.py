# ruff: noqa: RUF001 (letters of many scripts)
"""Pieces belong to spaCy's tokens in every language, character by character."""

from __future__ import annotations

import unicodedata
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import spacy
from tokenizers import Tokenizer

from spacy_distil.encoding import read_docs
from spacy_distil.encoding.alignment import align, token_offsets
from tests.languages.texts import LANGUAGES, ODD
from tests.languages.tokenizers import KINDS, make_tokenizer, pieces_of

ALL_KINDS = [*KINDS, "real"]


def aligned(doc: Any, kind: str) -> list[list[int]]:
    """The pieces of each token, as the package finds them."""
    (read,) = read_docs([doc])
    starts, ends = token_offsets(read.sizes, [len(doc)], np.zeros(1, dtype=np.int64))
    assert [doc.text[a:b] for a, b in zip(starts, ends, strict=True)] == [t.text for t in doc]
    first, last = align(starts, ends, pieces_of(kind)([doc.text])[0])
    return [list(range(a, b)) for a, b in zip(first, last, strict=True)]


@cache
def raw(kind: str) -> Tokenizer:
    tokenizer = make_tokenizer(kind)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def naive_offsets(text: str, kind: str) -> list[tuple[int, int]]:
    """The characters of each piece, without the spaces around a word."""
    encoding = raw(kind).encode(text, add_special_tokens=False)
    offsets = []
    for piece, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
        if piece == "▁":  # a space that a word is marked with has no character of its own
            end = start
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        offsets.append((start, end))
    return offsets


def naive(doc: Any, offsets: list[tuple[int, int]]) -> list[list[int]]:
    """The pieces that share a character with each token."""
    owners = []
    for token in doc:
        characters = set(range(token.idx, token.idx + len(token.text)))
        owners.append(
            [i for i, (start, end) in enumerate(offsets) if characters & set(range(start, end))]
        )
    return owners


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("name", LANGUAGES)
def test_alignment_is_the_overlap_of_characters(name: str, kind: str) -> None:
    nlp = LANGUAGES[name].blank()
    texts = LANGUAGES[name].texts
    n_exact = 0
    for text in (*texts, *ODD, "  ".join(texts), texts[0] + "".join(texts)):
        doc = nlp.make_doc(text)
        assert doc.text == text
        offsets = naive_offsets(text, kind)
        expected = naive(doc, offsets)
        own = [(start, end) for start, end in offsets if start < end]
        is_in_order = all(a <= c and b <= d for (a, b), (c, d) in pairwise(own))
        n_exact += is_in_order * len(doc)
        for token, range_, wanted in zip(doc, aligned(doc, kind), expected, strict=True):
            found = [i for i in range_ if offsets[i][0] < offsets[i][1]]
            if is_in_order:
                assert found == wanted
            else:  # a normalizer has swapped marks: a range includes what lies between its pieces
                assert set(wanted) <= set(range_)
            visible = [c for c in token.text if unicodedata.category(c)[0] in "LNPS"]
            assert found or not visible, (token.text, kind)
    assert n_exact > 0


@pytest.mark.parametrize("kind", KINDS)
def test_casing_and_accents_are_kept_or_stripped_as_the_tokenizer_says(kind: str) -> None:
    def ids(text: str) -> list[int]:
        return [int(i) for i in pieces_of(kind)([text])[0].ids]

    strips = kind == "uncased"
    assert (ids("Élèves d'Orléans") == ids("eleves d'orleans")) is strips
    assert (ids("σοφός") == ids("ΣΟΦΟΣ".lower())) is strips
    assert (ids("e\u0301te\u0301") == ids("été")) is (kind in ("uncased", "unigram"))
    assert ids("Straße") != ids("Strasse")  # lower-casing keeps it


@pytest.mark.parametrize(
    ("word", "others"),
    [
        ("İstanbul", "bir ışık"),
        ("e\u0301te\u0301", "la forêt"),
        ("ΟΔΥΣΣΕΥΣ", "και ᾠδή"),
        ("Straße", "fährt"),
        ("شَلـــوم", "بالعالم"),
        ("👩\u200d👩\u200d👧", "ok"),
        ("दिल्ली", "हूँ"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_word_keeps_its_pieces_behind_others(kind: str, word: str, others: str) -> None:
    """However many characters the normalizer adds or takes before it."""
    nlp = spacy.blank("xx")
    doc = spacy.tokens.Doc(nlp.vocab, words=["a", word])
    behind = spacy.tokens.Doc(nlp.vocab, words=["a", *others.split(), word])
    tokenizer = pieces_of(kind)
    own, found = (
        [int(pieces.ids[i]) for i in aligned(each, kind)[-1] if pieces.ends[i] > pieces.starts[i]]
        for each in (doc, behind)
        for pieces in [tokenizer([each.text])[0]]
    )
    assert own
    assert own == found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unigram", "bytes", "real"])
def test_a_long_chinese_doc(kind: str) -> None:
    """300,000 characters, each a token."""
    text = (LANGUAGES["zh"].texts[0] * 12_000)[:300_000]
    doc = spacy.blank("zh").make_doc(text)
    (read,) = read_docs([doc])
    starts, ends = token_offsets(read.sizes, [len(doc)], np.zeros(1, dtype=np.int64))
    pieces = pieces_of(kind)([text])[0]
    first, last = (column.tolist() for column in align(starts, ends, pieces))
    owners: list[list[int]] = [[] for _ in text]  # pieces of each character
    for i, (start, end) in enumerate(
        zip(pieces.starts.tolist(), pieces.ends.tolist(), strict=True)
    ):
        for character in range(start, end):
            owners[character].append(i)
    naive = [
        [i for owned in owners[start:end] for i in owned]
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    assert [(min(own), max(own) + 1) for own in naive] == list(zip(first, last, strict=True))
