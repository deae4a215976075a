from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from thinc.api import NumpyOps

from spacy_distil.encoding import encode_docs
from tests.encoding.test_pieces import KINDS, TOKENIZERS
from tests.util import SENTENCES

NLP = spacy.blank("en")
TOKENIZER = TOKENIZERS["bert"]
OPS = NumpyOps()
TEXTS = st.lists(
    st.one_of(st.text(max_size=20), st.lists(st.sampled_from(SENTENCES), max_size=3).map("".join)),
    max_size=5,
)


@pytest.mark.parametrize("family", KINDS)
@given(texts=TEXTS, window=st.integers(8, 40), overlap=st.integers(0, 10))
@settings(max_examples=40)
def test_docs_keep_to_themselves(family: str, texts: list[str], window: int, overlap: int) -> None:
    """A doc's tokens get its pieces, with any other docs and any number of windows."""
    tokenizer = TOKENIZERS[family]
    docs = [NLP.make_doc(text) for text in texts]
    encoded = encode_docs(docs, tokenizer, window=window, overlap=overlap, pooling="mean")
    assert encoded.n_tokens == [len(doc) for doc in docs]
    assert all(0 < len(ids) <= window - tokenizer.n_special for ids in encoded.windows)
    # With its id as a piece's vector, a token's is the mean of its pieces' ids in each way.
    rows: Any = np.concatenate([*encoded.windows, np.zeros(0)])[:, None].astype("f")
    together: Any
    together, _ = encoded.pooling.forward(OPS, rows)
    alone = []
    for doc in docs:
        one = encode_docs([doc], tokenizer, window=10_000, overlap=0, pooling="mean")
        # The space after the last token is no part of it.
        text = doc.text[:-1] if len(doc) and doc[-1].whitespace_ else doc.text
        ids: Any = tokenizer([text])[0].ids
        assert [window.tolist() for window in one.windows] == ([ids.tolist()] if len(ids) else [])
        alone.append(one.pooling.forward(OPS, ids[:, None].astype("f"))[0])
    np.testing.assert_allclose(together, np.concatenate([*alone, np.zeros((0, 1))]), rtol=1e-4)


def test_no_docs() -> None:
    encoded = encode_docs([], TOKENIZER, window=10, overlap=0, pooling="mean")
    assert encoded.windows == []
    assert encoded.n_tokens == []
    assert encoded.pooling.forward(OPS, OPS.alloc2f(0, 4))[0].shape == (0, 4)


def test_docs_without_pieces_have_no_window() -> None:
    docs = [NLP.make_doc(text) for text in ("", "   ", "\n\n", "\x00")]
    encoded = encode_docs(docs, TOKENIZER, window=10, overlap=0, pooling="mean")
    assert encoded.windows == []
    assert encoded.n_tokens == [len(doc) for doc in docs]


@pytest.mark.parametrize("family", KINDS)
def test_a_space_after_the_last_token_changes_nothing(family: str) -> None:
    tokenizer = TOKENIZERS[family]
    docs = [NLP.make_doc(text) for text in ("Ann is here", "Ann is here ")]
    assert docs[1][-1].whitespace_
    encoded = encode_docs(docs, tokenizer, window=50, overlap=0, pooling="mean")
    assert encoded.windows[0].tolist() == encoded.windows[1].tolist()


@pytest.mark.parametrize("family", KINDS)
@given(texts=TEXTS, window=st.integers(8, 40), overlap=st.integers(0, 10))
@settings(max_examples=40)
def test_cls_is_the_first_row_of_the_window(
    family: str, texts: list[str], window: int, overlap: int
) -> None:
    """Of the first window with the token's first piece, or the one of the token before."""
    tokenizer = TOKENIZERS[family]
    n_special = tokenizer.n_special
    overlap = min(overlap, (window - n_special) // 2)
    docs = [NLP.make_doc(text) for text in texts]
    encoded = encode_docs(docs, tokenizer, window=window, overlap=overlap, pooling="cls")
    assert encoded.special
    sizes = [len(ids) + n_special for ids in encoded.windows]
    assert encoded.pooling.n_rows == sum(sizes)
    # The windows are the same as with other poolings, and one more for a doc without pieces.
    others = encode_docs(docs, tokenizer, window=window, overlap=overlap, pooling="mean")
    kept = [ids.tolist() for ids in encoded.windows if len(ids)]
    assert kept == [ids.tolist() for ids in others.windows]
    assert [n > 0 for n in encoded.n_windows] == [len(doc) > 0 for doc in docs]
    rows: Any = np.arange(sum(sizes), dtype="f")[:, None]
    tokens, _ = encoded.pooling.forward(OPS, rows)
    got = iter(np.asarray(tokens)[:, 0].tolist())
    first_window = token = row = 0
    for doc, n_windows in zip(docs, encoded.n_windows, strict=True):
        begins = np.cumsum([0, *sizes[first_window : first_window + n_windows]]) + row
        # The pieces of each window, by their numbers in all docs.
        own, start = [], 0
        for ids in encoded.windows[:first_window]:
            start += len(ids)
        for ids in encoded.windows[first_window : first_window + n_windows]:
            own.append(set(encoded.row_pieces[start : start + len(ids)].tolist()))
            start += len(ids)
        current = 0
        for _ in doc:
            if encoded.first[token] < encoded.last[token]:
                current = next(i for i, each in enumerate(own) if encoded.first[token] in each)
            assert next(got) == begins[current]
            token += 1
        first_window += n_windows
        row = int(begins[-1])
    assert next(got, None) is None
