"""Single characters: which of them stay, so that unseen text can be encoded."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from functools import cache

# A script counts as used if it has this share of the letters of a corpus.
MIN_SHARE = 0.001
# Of larger sets, such as Chinese characters or emoji, only the characters of the corpus stay.
LARGEST_ALPHABET = 500


@cache
def script(character: str) -> str:
    """Return the script of a letter or mark, such as "LATIN", or the category of other characters.

    Python knows no scripts; the first word of a character's name comes close.
    """
    category = unicodedata.category(character)
    if category[0] not in "LM":
        return category
    return unicodedata.name(character, category).split()[0]


def is_letter(name: str) -> bool:
    """Whether a name of `script` is a script, and not a category of other characters."""
    return len(name) > 2


def choose_characters(single: Mapping[int, str], counts: Mapping[str, int]) -> set[int]:
    """Choose the pieces of one character that stay.

    single: the character of each such piece, by its id.
    counts: how often each character occurs in the corpus.
    RETURNS: ids.
    """
    letters: Counter[str] = Counter()
    for character, count in counts.items():
        if is_letter(name := script(character)):
            letters[name] += count
    n_letters = sum(letters.values())
    members: defaultdict[str, set[str]] = defaultdict(set)
    for character in single.values():
        members[script(character)].add(character)
    whole = {
        name
        for name, characters in members.items()
        if len(characters) <= LARGEST_ALPHABET
        and (not is_letter(name) or letters[name] >= MIN_SHARE * max(n_letters, 1))
    }
    return {i for i, c in single.items() if counts.get(c) or script(c) in whole}


def count_dropped(single: Mapping[int, str], kept: Collection[int]) -> dict[str, int]:
    """Count characters of which a piece is dropped, by script or category, the most first.

    single: as in `choose_characters`. kept: ids of all kept pieces.
    """
    dropped = {c for i, c in single.items() if i not in kept}
    return dict(Counter(map(script, sorted(dropped))).most_common())
