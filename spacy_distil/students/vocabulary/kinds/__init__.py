"""Kinds of tokenizers, by the `type` of the model in their tokenizer.json."""

from __future__ import annotations

import json

from spacy_distil.engines.files import TOKENIZER
from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.students.vocabulary.kinds.base import Kind, Text
from spacy_distil.students.vocabulary.kinds.byte_pair import BytePair
from spacy_distil.students.vocabulary.kinds.unigram import Unigram
from spacy_distil.students.vocabulary.kinds.word_level import WordLevel
from spacy_distil.students.vocabulary.kinds.word_piece import WordPiece

__all__ = ["Kind", "Text", "read_kind"]

KINDS: dict[str, type[Kind]] = {
    "BPE": BytePair,
    "Unigram": Unigram,
    "WordLevel": WordLevel,
    "WordPiece": WordPiece,
}


def read_kind(tokenizer_json: str) -> Kind:
    """Parse a tokenizer.json.

    Raises WeightsError if it is none, ConfigError for a kind that cannot be pruned.
    """
    try:
        content = json.loads(tokenizer_json)
        name = content["model"]["type"]
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{TOKENIZER} is not a saved tokenizer with a model and its type: {error!r}."
        ) from error
    if name not in KINDS:
        raise ConfigError(
            f"The tokenizer's model is {name}, whose vocabulary cannot be pruned; expected one of "
            f"{', '.join(KINDS)}. Leave vocabulary pruning out."
        )
    return KINDS[name](content)
