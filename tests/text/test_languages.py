"""Texts and tokenizers of another language are noticed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from spacy_distil.errors import ConfigError
from spacy_distil.text.languages import (
    COMMON,
    check_language,
    guess_language,
    guess_tokenizer_language,
    language_name,
    stop_words,
)

# The beginning of the Universal Declaration of Human Rights.
ENGLISH = """All human beings are born free and equal in dignity and rights. They are endowed with
reason and conscience and should act towards one another in a spirit of brotherhood. Everyone is
entitled to all the rights and freedoms set forth in this Declaration, without distinction of any
kind, such as race, colour, sex, language, religion, political or other opinion, national or social
origin, property, birth or other status."""
GERMAN = """Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit
Vernunft und Gewissen begabt und sollen einander im Geiste der Brüderlichkeit begegnen. Jeder
hat Anspruch auf alle in dieser Erklärung verkündeten Rechte und Freiheiten, ohne irgendeinen
Unterschied, etwa nach Rasse, Hautfarbe, Geschlecht, Sprache, Religion, politischer oder
sonstiger Anschauung, nationaler oder sozialer Herkunft, Vermögen, Geburt oder sonstigem Stand."""
FRENCH = """Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont
doués de raison et de conscience et doivent agir les uns envers les autres dans un esprit de
fraternité. Chacun peut se prévaloir de tous les droits et de toutes les libertés proclamés dans
la présente Déclaration, sans distinction aucune, notamment de race, de couleur, de sexe, de
langue, de religion, d'opinion politique ou de toute autre opinion."""
TEXTS = {"en": [ENGLISH] * 2, "de": [GERMAN] * 2, "fr": [FRENCH] * 2}


@pytest.mark.parametrize("lang", TEXTS)
def test_a_text_of_another_language(lang: str) -> None:
    assert guess_language(TEXTS[lang]) == lang
    for own in TEXTS:
        assert guess_language(TEXTS[lang], own) == (lang if own != lang else None)


def test_what_is_not_clear_is_not_guessed() -> None:
    assert guess_language([ENGLISH[:200]], "de") is None  # a few words
    assert guess_language(["Bado kelu 12 mirat 7:40. "] * 99, "en") is None
    assert guess_language(TEXTS["de"], "xx") is None  # has no stop words
    assert guess_language(TEXTS["de"], "nobody's") is None
    assert guess_language([ENGLISH, GERMAN] * 5, "en") is None
    assert guess_language([]) is None


def test_codes_of_languages() -> None:
    assert [check_language(code) for code in ("de", "eng", "xx")] == ["de", "en", "xx"]
    with pytest.raises(ConfigError, match=r"lang = 'zz': spaCy has no such language\..*'en', or"):
        check_language("zz")


def whole_words(*langs: str):  # type: ignore[no-untyped-def]
    """A tokenizer that splits all words but the stop words of some languages into letters."""
    known = sorted(set().union(*map(stop_words, langs)))
    number = {word: i for i, word in enumerate(known, 1)}

    def split(texts: Sequence[str]) -> list[list[int]]:
        words = [text.strip() for text in texts]
        return [
            [number[word]] if word in number else [-ord(each) for each in word] for word in words
        ]

    return split


def test_a_tokenizer_of_another_language() -> None:
    english = whole_words("en")
    assert guess_tokenizer_language(english, 30_000, "en") is None
    assert guess_tokenizer_language(english, 30_000, "de") == "en"
    assert guess_tokenizer_language(english, 30_000, "el") == "en"
    assert guess_tokenizer_language(whole_words("de"), 30_000, "en") == "de"


def test_tokenizers_that_tell_nothing() -> None:
    assert guess_tokenizer_language(whole_words("en"), 500, "de") is None  # too few pieces
    assert guess_tokenizer_language(whole_words(), 30_000, "de") is None  # of no language
    assert guess_tokenizer_language(whole_words("en"), 30_000, "xx") is None
    many = whole_words(*set(COMMON) - {"hu"})  # for many languages, though not for this one
    assert guess_tokenizer_language(many, 30_000, "hu") is None


def test_unknown_pieces_are_no_words() -> None:
    """A tokenizer may have a single unknown piece for all words of another script."""
    english = whole_words("en")

    def split(texts: Sequence[str]) -> list[list[int]]:
        return [ids if min(ids) > -128 else [0] for ids in english(texts)]

    assert guess_tokenizer_language(split, 30_000, "ru") == "en"


def test_languages_have_names() -> None:
    assert [language_name(code) for code in ("de", "nb", "qq")] == ["German", "Norwegian", "'qq'"]
