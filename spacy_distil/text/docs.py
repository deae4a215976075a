"""Make docs from the tokens of other docs."""

from __future__ import annotations

from spacy.tokens import Doc
from spacy.vocab import Vocab


def same_tokens(doc: Doc, vocab: Vocab) -> Doc:
    """Make a doc of the same tokens, without annotation, for a pipeline that has this vocab.

    The doc keeps the norms that the tokenizer set (the norm of "n't" is "not"), because spaCy's
    hash embeddings read them.
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
