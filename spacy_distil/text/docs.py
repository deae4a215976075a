"""Docs made anew from the tokens of others."""

from __future__ import annotations

from spacy.tokens import Doc
from spacy.vocab import Vocab


def same_tokens(doc: Doc, vocab: Vocab) -> Doc:
    """A doc of the same tokens, without annotation, for a pipeline that has this vocab.

    It keeps the norms that the tokenizer has written ("n't" is "not"): spaCy's hash embeddings read
    them.
    """
    copy = Doc(
        vocab,
        words=[token.text for token in doc],
        spaces=[bool(token.whitespace_) for token in doc],
    )
    for own, token in zip(copy, doc, strict=True):
        if own.norm_ != token.norm_:
            own.norm_ = token.norm_
    return copy
