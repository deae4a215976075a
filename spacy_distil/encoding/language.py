"""Telling that an encoder is made for another language."""

from __future__ import annotations

from spacy_distil.encoding.pieces import PieceTokenizer
from spacy_distil.text.languages import guess_tokenizer_language, language_name


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
