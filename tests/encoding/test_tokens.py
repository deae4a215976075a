"""`pieces_from = "tokens"`: the tokenizer of pieces reads each token by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc
from thinc.api import NumpyOps
from tokenizers import Tokenizer

from spacy_distil.encoding import DocText, EncodedDocs, PieceTokenizer, encode_docs, read_docs
from spacy_distil.errors import WeightsError
from tests.encoding.test_encode import TEXTS
from tests.encoding.test_pieces import KINDS, TOKENIZERS, with_pattern

NLP = spacy.blank("en")
OPS = NumpyOps()


def encode(docs: list[Any], family: str = "bert", window: int = 10_000, **own: Any) -> EncodedDocs:
    settings: dict[str, Any] = {"overlap": 0, "pooling": "mean", "pieces_from": "tokens", **own}
    return encode_docs(docs, TOKENIZERS[family], window=window, **settings)


def pieces_of(encoded: EncodedDocs) -> list[list[int]]:
    """The ids of each token of docs that are one window each, by its rows."""
    ids = np.concatenate([np.zeros(0, dtype=int), *encoded.windows])
    rows, n_rows = encoded.token_rows()
    ends = np.cumsum(n_rows)
    return [ids[rows[end - n : end]].tolist() for n, end in zip(n_rows, ends, strict=True)]


@pytest.mark.parametrize("family", KINDS)
@given(texts=TEXTS)
@settings(max_examples=40)
def test_each_token_is_read_by_itself(family: str, texts: list[str]) -> None:
    """Against the library, one token at a time."""
    tokenizer = TOKENIZERS[family]
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    docs = [NLP.make_doc(text) for text in texts]
    expected = []
    for doc in docs:
        for token in doc:
            space = token.nbor(-1).whitespace_ if token.i else ""
            encoding = plain.encode(space + token.text, add_special_tokens=False)
            expected.append([] if token.is_space else encoding.ids)
    actual = pieces_of(encode(docs, family))
    assert len(actual) == len(expected)
    assert actual == expected


@pytest.mark.parametrize("family", KINDS)
@given(texts=TEXTS, window=st.integers(8, 40), overlap=st.integers(0, 10))
@settings(max_examples=40)
def test_docs_keep_to_themselves(family: str, texts: list[str], window: int, overlap: int) -> None:
    docs = [NLP.make_doc(text) for text in texts]
    encoded = encode(docs, family, window, overlap=overlap)
    capacity = window - TOKENIZERS[family].n_special
    assert all(0 < len(ids) <= capacity for ids in encoded.windows)
    alone = [mean_ids(encode([doc], family)) for doc in docs]
    np.testing.assert_allclose(
        mean_ids(encoded), np.concatenate([*alone, np.zeros((0, 1))]), rtol=1e-4
    )


def mean_ids(encoded: EncodedDocs) -> Any:
    """With its id as a piece's vector, a token's is the mean of its pieces' ids in each way."""
    rows: Any = np.concatenate([*encoded.windows, np.zeros(0)])[:, None].astype("f")
    return encoded.pooling.forward(OPS, rows)[0]


def test_words_are_not_joined() -> None:
    """As text, "cannot" is one word."""
    doc = NLP.make_doc("They cannot")
    assert [token.text for token in doc] == ["They", "can", "not"]
    parts = pieces_of(encode([doc]))
    assert parts[1] + parts[2] != TOKENIZERS["bert"](["cannot"])[0].ids.tolist()
    assert parts[2] == TOKENIZERS["bert"](["not"])[0].ids.tolist()


def test_the_space_before_a_token_is_read() -> None:
    docs = [Doc(NLP.vocab, ["a", "b"], spaces=[space, False]) for space in (True, False)]
    with_space, without = (pieces_of(encode([doc], "roberta")) for doc in docs)
    assert with_space[0] == without[0]
    assert with_space[1] == TOKENIZERS["roberta"]([" b"])[0].ids.tolist()
    assert without[1] == TOKENIZERS["roberta"](["b"])[0].ids.tolist()
    assert with_space[1] != without[1]


def test_whitespace_has_no_pieces() -> None:
    for family in KINDS:
        docs = [NLP.make_doc(text) for text in ("", "   ", "\n\n", "a \n b")]
        encoded = encode(docs, family)
        assert encoded.n_windows == [0, 0, 0, 1]
        assert [bool(ids) for ids in pieces_of(encoded)] == [False] * 2 + [True, False, True]


def test_texts_of_docs_are_split_like_docs() -> None:
    doc = NLP.make_doc("Ann  can't\n go ")
    (text,) = read_docs([doc])
    assert isinstance(text, DocText)
    assert text.split() == ["Ann", "", "ca", "n't", "", "go"]
    assert pieces_of(encode([text])) == pieces_of(encode([doc]))


@pytest.mark.parametrize("family", KINDS)
def test_special_pieces_in_a_text_are_text(family: str) -> None:
    tokenizer = TOKENIZERS[family]
    special = {*tokenizer.prefix, *tokenizer.suffix}
    words = ["[SEP]", "[CLS]", "<s>", "</s>", "a"]
    parts = pieces_of(encode([Doc(NLP.vocab, words)], family))
    assert all(part and not special & {*part} for part in parts)


def test_a_text_on_which_the_tokenizer_fails_is_named() -> None:
    tokenizer = PieceTokenizer(with_pattern("(q+)+$", "pre-tokenizer"))
    doc = Doc(NLP.vocab, ["good", "q" * 50 + "!"])
    with pytest.raises(WeightsError, match="fails on the text that begins with 'good qqq"):
        encode_docs([doc], tokenizer, window=50, overlap=0, pooling="mean", pieces_from="tokens")


def test_no_docs() -> None:
    encoded = encode([])
    assert encoded.windows == []
    assert encoded.n_tokens == []
