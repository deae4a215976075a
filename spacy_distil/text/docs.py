"""Make docs from the tokens of other docs."""

from __future__ import annotations

from typing import Any

from spacy.tokens import Doc
from spacy.vocab import Vocab

# In `doc.user_data`, before the name of an extension: further texts that pipes read with the doc.
FURTHER_TEXT = "spacy_distil.text."


def same_tokens(doc: Doc, vocab: Vocab) -> Doc:
    """Make a doc of the same tokens, without annotation, for a pipeline that has this vocab.

    The doc keeps the norms that the tokenizer set (the norm of "n't" is "not"), because spaCy's
    hash embeddings read them. It also keeps the further texts that `distil_pair` and `distil_qa`
    read.
    """
    copy = Doc(
        vocab,
        words=[token.text for token in doc],
        spaces=[bool(token.whitespace_) for token in doc],
    )
    for own, token in zip(copy, doc, strict=True):
        if own.norm_ != token.norm_:
            own.norm_ = token.norm_
    copy.user_data.update(further_texts(doc))
    return copy


def further_texts(doc: Doc) -> dict[str, Any]:
    """Return the entries of `doc.user_data` with further texts, sorted."""
    keys = (key for key in doc.user_data if isinstance(key, str) and key.startswith(FURTHER_TEXT))
    return {key: doc.user_data[key] for key in sorted(keys)}
