"""The labels of a token classifier as tags of entities."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spacy_distil.errors import ConfigError
from spacy_distil.ner.schemes import SCHEMES, Scheme, tag_names

# A tag such as B-PER or I_LOC; the same in small letters; and with the letter at the end, as PER-B.
_SPELLINGS = (
    re.compile(r"(?P<letter>[BIMLEUS])[-_](?P<label>.+)", re.DOTALL),
    re.compile(r"(?P<letter>[bimleus])[-_](?P<label>.+)", re.DOTALL),
    re.compile(r"(?P<label>.+)[-_](?P<letter>[BIMLEUS])", re.DOTALL),
)
# Other letters for the same: BIOES has End and Single, BMES has Middle.
_LETTERS = {"E": "L", "S": "U", "M": "I"}
MISSING = -1


@dataclass(frozen=True)
class EntityTags:
    """The labels of a token classifier, read as tags.

    labels: of entities, in the order of their first tags.
    numbers: the number of each tag's label, by the tag in our spelling, such as "B-PER".
    schemes: those that the tags may belong to, the usual one first.
    is_ambiguous: whether the model's predictions have to tell which one it is.
    """

    labels: tuple[str, ...]
    numbers: Mapping[str, int]
    schemes: tuple[Scheme, ...]
    is_ambiguous: bool

    def columns(self, scheme: Scheme) -> np.ndarray:
        """Return the number of the label for each tag of a `distil_ner`, or MISSING: (n_tags,)."""
        names = tag_names(self.labels, scheme)
        return np.array([self.numbers.get(name, MISSING) for name in names], dtype=np.int64)

    def check_scheme(self, scheme: str) -> Scheme:
        """Return a scheme. Raises ConfigError if the tags do not belong to it."""
        if scheme not in SCHEMES:
            raise ConfigError(f"scheme = {scheme!r}: expected one of {', '.join(SCHEMES)}.")
        for each in self.schemes:
            if each == scheme:
                return each
        raise ConfigError(
            f"scheme = {scheme!r}: the model has the tags {_first(self.numbers)}, which fit "
            f"{' or '.join(self.schemes)}. Leave --scheme out, or give one of these."
        )

    def count_starts(self, tags: np.ndarray) -> tuple[int, int]:
        """Count the entities that begin with B, and with I, behind another tag.

        tags: numbers of the labels that the model predicts for the tokens of a doc, (n_tokens,).
        """
        names = {number: tag for tag, number in self.numbers.items()}
        starts = {"B": 0, "I": 0}
        before = ""
        for number in tags.tolist():
            letter, _, label = names[number].partition("-")
            # In IOB1, B separates two entities of one label. In IOB2 it begins all of them.
            if label and label != before:
                starts[letter] += 1
            before = label
        return starts["B"], starts["I"]


def read_tags(names: Sequence[str]) -> EntityTags | None:
    """Read the labels of a token classifier as tags of entities.

    names: of the labels, each once.
    RETURNS: `None` if they are no such tags, as the tags of parts of speech.
    Raises ConfigError if some are and others are not, or if they fit no scheme.
    """
    outside = [name for name in names if name.upper() == "O"]
    others = [name for name in names if name.upper() != "O"]
    found = _match(others)
    if len(found) < len(others):
        if not outside:
            return None
        if found:
            raise ConfigError(
                f"The labels {_first(set(others) - set(found))} are no tags of entities, but "
                f"others are, such as {_first(found)}. Rename the former in id2label of "
                "config.json (to B-UNUSED, if the model never predicts it), or take another model."
            )
        if {"B", "I"} <= {*others} <= {"B", "I", "L", "E", "M", "U", "S"}:
            raise ConfigError(
                f"The labels {_first(others)} are tags of entities without a label. Rename them in "
                "id2label of config.json, such as B-ENTITY and I-ENTITY."
            )
    pairs = list(_letters(others, found))
    spelled = {name: "-".join(pair) for name, pair in zip(others, pairs, strict=True)}
    tags = [spelled.get(name, "O") for name in names]
    twice = [tag for tag in dict.fromkeys(tags) if tags.count(tag) > 1]
    if twice:
        raise ConfigError(
            f"Several labels of the model are the same tag: {_first(twice)}. Rename them in "
            "id2label of config.json."
        )
    if not pairs:
        raise ConfigError("The only label of the model is O: it finds no entities.")
    labels = tuple(dict.fromkeys(label for _, label in pairs))
    numbers = {tag: number for number, tag in enumerate(tags)}
    schemes, is_ambiguous = _find_schemes(pairs, numbers)
    return EntityTags(labels, numbers, schemes, is_ambiguous)


def _match(names: Sequence[str]) -> dict[str, re.Match]:
    """Match names with tags. RETURNS: the matches by name.

    Unusual spellings count if all names have them, and some tags begin and others go on.
    """
    usual, *others = (
        {name: match for name in names if (match := spelling.fullmatch(name))}
        for spelling in _SPELLINGS
    )
    for found in () if usual else others:
        letters = {match["letter"].upper() for match in found.values()}
        if len(found) == len(names) and letters >= {"B", "I"}:
            return found
    return usual


def _letters(names: Sequence[str], found: Mapping[str, re.Match]) -> Iterator[tuple[str, str]]:
    """Yield letter and label of each tag. A label without a letter is Inside."""
    for name in names:
        if name in found:
            letter = found[name]["letter"].upper()
            yield _LETTERS.get(letter, letter), found[name]["label"]
        else:
            yield "I", name


def _find_schemes(
    pairs: Sequence[tuple[str, str]], numbers: Mapping[str, int]
) -> tuple[tuple[Scheme, ...], bool]:
    """RETURNS (schemes, is_ambiguous): see `EntityTags`."""
    letters = {letter for letter, _ in pairs}
    if letters & {"L", "U"}:
        if not letters >= {"L", "U"}:
            raise ConfigError(
                f"The tags {_first(numbers)} fit no scheme: one with Last (L or E) tags also has "
                f"Unit (U or S) tags. Expected {', '.join(SCHEMES)} or BIOES."
            )
        return ("BILUO",), False
    if "B" not in letters:
        return ("IO", "IOB1"), False
    begun, inside = ({label for each, label in pairs if each == letter} for letter in "BI")
    if inside - begun:  # entities of these labels begin with I
        return ("IOB1", "IOB2"), False
    # In IOB1 no label has B alone, because B follows I. Without any I, all entities have one token.
    return ("IOB2", "IOB1"), inside == begun


def _first(names: Collection[str]) -> str:
    """List the first few."""
    listed = sorted(names) if isinstance(names, set) else list(names)
    more = f" and {len(listed) - 6} more" if len(listed) > 6 else ""
    return ", ".join(map(repr, listed[:6])) + more
