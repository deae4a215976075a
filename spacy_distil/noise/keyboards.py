"""Which keys lie beside each other."""

from __future__ import annotations

from functools import cache

# Letters by row. A row begins half a key to the right of the one above it, or less.
_QWERTY = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_QWERTZ = ("qwertzuiopü", "asdfghjklöä", "yxcvbnm")
_AZERTY = ("azertyuiop", "qsdfghjklm", "wxcvbn")
_JCUKEN = ("йцукенгшщзхъ", "фывапролджэ", "ячсмитьбю")
_UKRAINIAN = ("йцукенгшщзхї", "фівапролджє", "ячсмитьбю")
_GREEK = (" ςερτυθιοπ", "ασδφγηξκλ", "ζχψωβνμ")

# Letters by the language of the keyboard. All other languages have QWERTY.
_LAYOUTS = {
    "de": _QWERTZ,
    "fr": _AZERTY,
    "ru": _JCUKEN,
    "uk": _UKRAINIAN,
    "el": _GREEK,
    **dict.fromkeys(("cs", "hr", "hu", "sk", "sl"), _QWERTZ),
}


@cache
def neighbours(lang: str) -> dict[str, str]:
    """Return the lower-case letters beside each one, on the usual keyboard of a language."""
    rows = _LAYOUTS.get(lang, _QWERTY)
    found: dict[str, str] = {}
    for i, row in enumerate(rows):
        for j, key in enumerate(row):
            places = [
                (i, j - 1),
                (i, j + 1),
                (i - 1, j),
                (i - 1, j + 1),
                (i + 1, j - 1),
                (i + 1, j),
            ]
            found[key] = "".join(
                rows[k][m] for k, m in places if 0 <= k < len(rows) and 0 <= m < len(rows[k])
            ).replace(" ", "")
    found.pop(" ", None)
    return found
