"""Texts and docs that are hard on tokenizers, written by hand or drawn at random."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from spacy.tokens import Doc
from tokenizers import Tokenizer

from tests.util import SENTENCES, build_tokenizer

SPACES = (
    "",
    " ",
    "     ",
    "\t",
    "\n\n",
    "\r\n",
    "\u00a0",
    "\u3000",
    "\u1680\u2028",
    " \t\n\u00a0 ",
)
EMOJI = ("👩‍👩‍👧", "👍🏽", "🇳🇴🇧🇷", "1️⃣", "🏴\U000e0067\U000e0062\U000e007f", "☃")
# Stacked, apart and composed, in an order that normalizers change, and those that compose.
MARKS = (
    "e\u0301",
    "é",
    "o" + "\u0308" * 6,
    "q\u0307\u0323",
    "q\u0323\u0307",
    "\u1100\u1161\u11a8",
    "ｶﾞ",
    "हिन्दी",
)
# Zero-width, soft hyphen, marks of direction, tags.
INVISIBLE = ("\x00", "\x1f", "\x7f", "\u0085", "\u200b", "\u200d", "\ufeff", "\u00ad", "\U000e0001")
DIRECTED = ("שָׁלוֹם", "مرحبا", "\u202eabc\u202c", "\u200f", "\u2066")
SCRIPTS = ("東京都", "ひらがな", "ภาษาไทย", "한국어")
# Longer, shorter or nothing once they are normalized.
CHANGING = ("İ", "ﬁ", "ß", "½", "\u00b4", "ﷺ", "ŉ", "``", "''")
# Private use, not assigned, not a character, the last one.
UNASSIGNED = ("\ue000", "\u0378", "\ufdd0", "\ufffd", "\U0010ffff")
LITERAL = ("[SEP]", "[CLS]", "[PAD]", "[UNK]", "[MASK]", "<s>", "</s>", "<pad>", "<unk>", "<mask>")
PIECES = ("<|endoftext|>", "▁", "▁▁x", "Ġ", "Ċ", "##", "##ing")
WORDS = ("unbelievable", "don't", "a", "x" * 40, "Zürich.", "1,000")
PARTS = (
    *(*SPACES, *EMOJI, *MARKS, *INVISIBLE, *DIRECTED, *SCRIPTS),
    *(*CHANGING, *UNASSIGNED, *LITERAL, *PIECES, *WORDS),
)

# A text, or words and whether a space follows each.
Source = str | tuple[tuple[str, bool], ...]


def make_doc(nlp: Any, source: Source) -> Doc:
    """Make a doc with spaCy's tokenizer, or from given tokens."""
    if isinstance(source, str):
        return nlp.make_doc(source)
    return Doc(nlp.vocab, words=[w for w, _ in source], spaces=[space for _, space in source])


def make_docs(nlp: Any, sources: Iterable[Source]) -> list[Doc]:
    return [make_doc(nlp, source) for source in sources]


def by_character(text: str) -> Source:
    """Make each character a token."""
    return tuple((character, False) for character in text)


# All parts of each kind in one doc; each part alone; and everything in one doc, also
# character by character.
EXAMPLES: tuple[Source, ...] = (
    *(" ".join(kind) for kind in (EMOJI, MARKS, INVISIBLE, DIRECTED, SCRIPTS)),
    *(" ".join(kind) for kind in (CHANGING, UNASSIGNED, LITERAL, PIECES)),
    *PARTS,
    "".join(PARTS),
    " ".join(PARTS),
    by_character("".join(PARTS)),
    # Tokens that cut through pieces, and one of several words.
    (("un", False), ("believ", False), ("able", True), ("pizza of", False), (" Oslo", False)),
    # None of these has a piece.
    ((" ", False), ("\n", True), ("\u3000", False), (" ", True)),
    *SENTENCES,
)


# At random, with a fixed seed.

SETTINGS = settings(
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)

TEXTS = st.lists(
    st.one_of(st.sampled_from(PARTS), st.sampled_from(SENTENCES), st.text(max_size=8)), max_size=6
).flatmap(lambda parts: st.sampled_from(["", " "]).map(lambda between: between.join(parts)))


@st.composite
def pretokenized(draw: st.DrawFn) -> Source:
    """Draw tokens that are cut anywhere, even inside words, sequences of emoji and combined
    characters.
    """
    text = draw(TEXTS)
    cuts = draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=12))
    bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    return tuple((text[a:b], draw(st.booleans())) for a, b in pairwise(bounds) if a < b)


SOURCES = st.one_of(TEXTS, pretokenized(), TEXTS.map(by_character))
BATCHES = st.lists(SOURCES, max_size=6)


# Which characters a tokenizer makes something of


@cache
def is_kept(family: str) -> Callable[[str], bool]:
    """Check that a family's tokenizer makes a piece of a single character, that this is not a piece
    of spaces, and that the character does not join the one before it.
    """
    tokenizer: Tokenizer = build_tokenizer(family)
    tokenizer.encode_special_tokens = True

    @cache
    def kept(character: str) -> bool:
        pieces = tokenizer.encode(character, add_special_tokens=False).tokens
        return (
            any(piece.strip("▁") for piece in pieces)
            and not character.isspace()
            and not _joins(character)
        )

    return kept


def _joins(character: str) -> bool:
    """Check whether some normal form, or ALBERT's, joins the character to the one before it."""
    return (
        unicodedata.category(character).startswith("M")
        or unicodedata.normalize("NFKC", character) in "\u3099\u309a`'"
        or "\u1160" <= character <= "\u11ff"
    )
