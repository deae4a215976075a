"""Docs made anew from the tokens of others."""

from __future__ import annotations

import pytest
import spacy
from spacy.tokens import Doc
from spacy.vocab import Vocab

from spacy_distil.text.docs import same_tokens

NLP = spacy.blank("en")


@pytest.mark.parametrize(
    "text",
    ["", " ", "We don't.  They've\n gone", "Zoe\u0308 \U0001f469\u200d\U0001f680", "東京 \x00"],
)
@pytest.mark.parametrize("other", ["en", "de", None])
def test_tokens_and_norms_are_kept(text: str, other: str | None) -> None:
    doc = NLP(text)
    vocab = Vocab() if other is None else spacy.blank(other).vocab
    copy = same_tokens(doc, vocab)
    assert copy.vocab is vocab
    assert copy.text == doc.text
    assert [(t.text, t.norm_, t.idx) for t in copy] == [(t.text, t.norm_, t.idx) for t in doc]


def test_annotation_is_left_out() -> None:
    doc = Doc(NLP.vocab, words=["Ann", "left"], tags=["NNP", "VBD"], ents=["B-PER", "O"])
    copy = same_tokens(doc, NLP.vocab)
    assert not copy.has_annotation("TAG")
    assert not copy.has_annotation("ENT_IOB")
