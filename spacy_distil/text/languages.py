"""Codes of languages, and telling that a text or a tokenizer is made for another language.

The two guesses go by stop words. They are sure of some cases, and silent about all others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import islice

from spacy.util import get_lang_class

from spacy_distil.errors import ConfigError

# Languages that texts and tokenizers are compared with, beside their own.
COMMON: tuple[str, ...] = (
    *("en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "nb", "fi", "pl", "cs", "ro", "hu"),
    *("tr", "el", "ru", "uk", "bg", "ar", "fa", "he", "hi", "id", "vi"),
)
# A text of another language has this share of its stop words, and so many times more than of its
# own. Running text has 0.3 to 0.6 of its own language.
MIN_SHARE, MIN_RATIO = 0.2, 3.0
# Words of a text that are counted, at most and at least.
MAX_WORDS, MIN_WORDS = 50_000, 100
# A tokenizer keeps so many stop words of its own language whole, and no more than this of another.
MIN_WHOLE, MAX_WHOLE = 0.8, 0.4
# Stop words of a language that are tried, at most and at least. A tokenizer of fewer pieces tells
# nothing.
MAX_STOP_WORDS, MIN_STOP_WORDS, MIN_PIECES = 60, 20, 2000

Split = Callable[[Sequence[str]], Sequence[Sequence[int]]]

_WORD = re.compile(r"[^\W\d_]+")
_UNKNOWN = "\N{UGARITIC LETTER ALPA}"


@cache
def stop_words(lang: str) -> frozenset[str]:
    """Return the stop words of a language of spaCy, in lower case. Unknown languages have none."""
    try:
        return frozenset(word.lower() for word in get_lang_class(lang).Defaults.stop_words)
    except ImportError:
        return frozenset()


def check_language(lang: str) -> str:
    """Return spaCy's own code of a language, such as "en" for "eng".

    Raises ConfigError if spaCy has no such language.
    """
    try:
        return str(get_lang_class(lang).lang)
    except ImportError as error:
        raise ConfigError(
            f"lang = {lang!r}: spaCy has no such language. Expected a two-letter code such as "
            "'en', or 'xx' for many languages at once."
        ) from error


def language_name(lang: str) -> str:
    """Return the English name of a language of spaCy, or the code of another."""
    try:
        return get_lang_class(lang).__name__
    except ImportError:
        return repr(lang)


def guess_language(texts: Iterable[str], lang: str | None = None) -> str | None:
    """Return the code of the language that texts seem to be in, or None if that is not clear.

    lang: the language that they should be in. Only another one counts, and only if it is clear.
    """
    found = (match.group() for text in texts for match in _WORD.finditer(text.lower()))
    words = list(islice(found, MAX_WORDS))
    if len(words) < MIN_WORDS:
        return None

    def share(code: str) -> float:
        known = stop_words(code)
        return sum(word in known for word in words) / len(words)

    if lang is None and share("en") >= MIN_SHARE:  # no other language has so many of these
        return "en"
    own = share(lang) if lang else 0.0
    if lang and (own >= MIN_SHARE or not stop_words(lang)):
        return None
    shares = sorted(((share(code), code) for code in COMMON if code != lang), reverse=True)
    best, code = shares[0]
    return code if best >= max(MIN_SHARE, MIN_RATIO * own) else None


def guess_tokenizer_language(split: Split, n_pieces: int, lang: str) -> str | None:
    """Return the code of the language that a tokenizer is made for, if it is clearly not `lang`.

    A tokenizer for many languages suits all of them.

    split: splits each text into the ids of its pieces, without special ones.
    n_pieces: number of pieces that the tokenizer knows.
    """
    if n_pieces < MIN_PIECES:
        return None
    own = _whole_words(split, lang)
    if own is None or own > MAX_WHOLE:
        return None
    shares = {code: _whole_words(split, code) or 0.0 for code in COMMON}
    suited = [code for code, share in shares.items() if share > MAX_WHOLE]
    best = max(shares, key=lambda code: shares[code])
    return best if len(suited) <= 2 and shares[best] >= MIN_WHOLE else None


def _whole_words(split: Split, lang: str) -> float | None:
    """Return the share of a language's stop words that are a single piece, or None if it has few.

    Words of one or two letters are left out: they may be pieces of other words.
    """
    words = sorted(word for word in stop_words(lang) if len(word) > 2 and word.isalpha())
    if len(words) < MIN_STOP_WORDS:
        return None
    words = words[:: 1 + len(words) // MAX_STOP_WORDS]
    unknown, *found = split([f" {word}" for word in (_UNKNOWN, *words)])
    return sum(len(ids) == 1 and list(ids) != list(unknown) for ids in found) / len(words)
