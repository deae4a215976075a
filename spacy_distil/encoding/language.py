"""Telling that an encoder is made for another language, or for other letters."""

from __future__ import annotations

import re
import string

from spacy_distil.encoding.pieces import PieceTokenizer
from spacy_distil.text.languages import guess_tokenizer_language, language_name

# Pieces with capitals have a larger share than this of a vocabulary that is made for them.
MIN_CAPITALS = 0.05


def describe_case(tokenizer: PieceTokenizer, name: str) -> str | None:
    """Say that a tokenizer treats capitals otherwise than its vocabulary is made for, or return
    None. So does transformers' for a folder with vocab.txt alone.

    name: of the encoder.
    """
    small, capital = (
        pieces.ids.tolist()
        for pieces in tokenizer(
            [" ".join(string.ascii_lowercase), " ".join(string.ascii_uppercase)]
        )
    )
    vocabulary = tokenizer.read_vocabulary()
    n_capital = sum(re.search(r"^[^\[<]*[A-Z]", piece) is not None for piece in vocabulary)
    has_capitals = n_capital > MIN_CAPITALS * len(vocabulary)
    if small == capital and has_capitals:
        problem = (
            "makes all letters small, but has pieces with capitals: set do_lower_case to false"
        )
    elif len(set(small)) > len(set(capital)) == 1:
        problem = "knows no capitals, and does not make them small: set do_lower_case to true"
    else:
        return None
    return (
        f"The tokenizer of {name} {problem} in its tokenizer_config.json, or the model sees other "
        "text than in its training"
    )


def describe_foreign(tokenizer: PieceTokenizer, name: str, lang: str) -> str | None:
    """Say that an encoder's tokenizer is clearly made for another language, or return None.

    name: of the encoder.
    lang: code of the pipeline's language.
    """
    own = guess_tokenizer_language(
        lambda texts: [pieces.ids.tolist() for pieces in tokenizer(texts)],
        tokenizer.largest_id + 1,
        lang,
    )
    if own is None:
        return None
    return (
        f"The encoder {name} seems to be made for {language_name(own)}, but the pipeline's "
        f"language is {language_name(lang)} (lang = {lang!r}): its tokenizer splits the language's "
        "most frequent words. Use an encoder for this language, or for many languages"
    )
