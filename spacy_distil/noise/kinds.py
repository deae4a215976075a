"""The kinds of noise: how each of them changes a word.

We looked for a library first. nlpaug has had no release since 2022 and needs pandas. augmenty has
keyboards and casing alone, draws from Python's global random state, and takes each document apart
into a dict, which is slow in a training loop.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from random import Random

from spacy_distil.noise.keyboards import neighbours

# Shorter words mostly become other words.
SHORTEST = 4

# Characters that optical character recognition takes for others.
_OCR: dict[str, tuple[str, ...]] = {
    "rn": ("m",),
    "m": ("rn",),
    "cl": ("d",),
    "d": ("cl",),
    "li": ("h",),
    "h": ("b", "li"),
    "e": ("c",),
    "c": ("e",),
    "l": ("1", "I"),
    "I": ("l", "1"),
    "1": ("l", "I"),
    "o": ("0",),
    "O": ("0",),
    "0": ("O",),
    "S": ("5",),
    "5": ("S",),
    "B": ("8",),
    "8": ("B",),
    "vv": ("w",),
    "w": ("vv",),
    "u": ("ii",),
    "t": ("f",),
    "f": ("t",),
    "g": ("q",),
    "ü": ("u", "ii"),
    "ö": ("o",),
    "ß": ("B",),
}
# Letters of one script that look like letters of another.
_LATIN, _OTHERS = "ABCEHIKMOPTXYaceiopsxyj", "АВСЕНІКМОРТХУасеіорѕхуј"  # noqa: RUF001
_LOOKALIKES = str.maketrans(_LATIN + _OTHERS, _OTHERS + _LATIN)
# Cyrillic letters whose diaeresis many writers leave out.
_YO = ("е", "Е")  # noqa: RUF001
# Instead of a single space, or after it.
ODD_SPACES = (" ", "\N{NO-BREAK SPACE}", "\N{THIN SPACE}", "\t")

# Returns the word with one change, or as it is if there is nothing to change.
Change = Callable[[str, Random, str], str]


def keyboard(word: str, rng: Random, lang: str) -> str:
    """Replace a letter by one beside it on the keyboard of the language."""
    near = neighbours(lang)
    places = [i for i, letter in enumerate(word) if near.get(letter.lower())]
    if not places:
        return word
    i = rng.choice(places)
    new = rng.choice(near[word[i].lower()])
    return word[:i] + (new.upper() if word[i].isupper() else new) + word[i + 1 :]


def swap(word: str, rng: Random, lang: str) -> str:
    """Swap two neighbouring characters that differ."""
    places = [i for i in range(len(word) - 1) if word[i] != word[i + 1]]
    if not places:
        return word
    i = rng.choice(places)
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def drop(word: str, rng: Random, lang: str) -> str:
    """Leave a character out."""
    i = rng.randrange(len(word))
    return word[:i] + word[i + 1 :]


def double(word: str, rng: Random, lang: str) -> str:
    """Write a character twice."""
    i = rng.randrange(len(word))
    return word[: i + 1] + word[i:]


def ocr(word: str, rng: Random, lang: str) -> str:
    """Take characters for others that look alike in print."""
    places = [(m.start(), shape) for shape in _OCR for m in re.finditer(shape, word)]
    if not places:
        return word
    i, shape = rng.choice(places)
    return word[:i] + rng.choice(_OCR[shape]) + word[i + len(shape) :]


def accents(word: str, rng: Random, lang: str) -> str:
    """Write Latin and Greek letters without their accents, and е for ё.

    Marks of other scripts make other letters, such as the Russian й or the vowels of Hindi.
    """  # noqa: RUF002
    plain: list[str] = []
    base = ""
    for c in unicodedata.normalize("NFD", word):
        if not unicodedata.combining(c):
            base = c
        elif _is_accent(c, base):
            continue
        plain.append(c)
    return unicodedata.normalize("NFC", "".join(plain))


def _is_accent(mark: str, base: str) -> bool:
    if base in _YO:
        return mark == "\N{COMBINING DIAERESIS}"
    return bool(base) and unicodedata.name(base, "").startswith(("LATIN", "GREEK"))


def lookalikes(word: str, rng: Random, lang: str) -> str:
    """Replace all letters that have a lookalike in another script (Latin and Cyrillic)."""
    return word.translate(_LOOKALIKES)


def lower(word: str, rng: Random, lang: str) -> str:
    """Write in lower case."""
    return word.lower()


def upper(word: str, rng: Random, lang: str) -> str:
    """Write in upper case."""
    return word.upper()


def title(word: str, rng: Random, lang: str) -> str:
    """Write with an initial capital."""
    return word[:1].upper() + word[1:].lower()


# Kinds that change a letter or two of a word, of SHORTEST letters or more.
TYPOS: dict[str, Change] = {"keyboard": keyboard, "swap": swap, "drop": drop, "double": double}
# Kinds that change all words of a document alike.
CASING: dict[str, Change] = {"lower": lower, "upper": upper, "title": title}
CHANGES: dict[str, Change] = {
    **TYPOS,
    **CASING,
    "ocr": ocr,
    "accents": accents,
    "lookalikes": lookalikes,
}
# Puts odd spaces between words, so there are more tokens.
SPACES = "spaces"
KINDS = (*CHANGES, SPACES)


def is_long(word: str) -> bool:
    """Whether a word can have a typo: letters and their marks alone, SHORTEST or more."""
    if len(word) < SHORTEST:
        return False
    return word.isalpha() or all(c.isalpha() or unicodedata.category(c)[0] == "M" for c in word)
