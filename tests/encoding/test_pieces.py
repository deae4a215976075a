from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from spacy_distil.encoding import PieceTokenizer
from spacy_distil.errors import WeightsError
from tests.util import FAMILIES, SENTENCES, build_tokenizer, special_pieces

# One family for each kind of tokenizer.
KINDS = ("bert", "roberta", "modernbert", "albert", "xlm-roberta", "deberta-v2")
# Of these, those made from SentencePiece's models, and those that may count spaces to a word.
SENTENCEPIECE = ("albert", "xlm-roberta", "deberta-v2")
SPACES_INSIDE = ("modernbert", *SENTENCEPIECE)


def naive_offsets(family: str, text: str) -> list[tuple[int, int]]:
    """Find the text of each piece, one after another; (i, i) for a piece of spaces only."""
    tokenizer = build_tokenizer(family)
    tokenizer.encode_special_tokens = True
    encoding = tokenizer.encode(text, add_special_tokens=False)
    spaces = "▁" if family in SENTENCEPIECE else ""
    offsets = []
    for piece, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
        if family in SENTENCEPIECE and piece in special_pieces(family).values():
            offsets += [(i, i + 1) for i in range(start, end)]  # a literal one is spelled
            continue
        if family in SENTENCEPIECE and not piece.strip("▁"):
            end = start
        while family in SPACES_INSIDE and start < end and is_space(text[start], spaces):
            start += 1
        while family in SPACES_INSIDE and start < end and is_space(text[end - 1], spaces):
            end -= 1
        offsets.append((start, end))
    return offsets


def is_space(character: str, others: str) -> bool:
    return character.isspace() or character in others


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_are_those_of_the_tokenizer(family: str) -> None:
    raw = build_tokenizer(family)
    texts = [*SENTENCES, "  Zoë\n visited  👩‍👩‍👧, ﬁne\u00a0\uff21\uff22\uff23 ▁ İ  ", "", "東京"]
    for text, pieces in zip(texts, PieceTokenizer(build_tokenizer(family))(texts), strict=True):
        assert pieces.ids.tolist() == raw.encode(text, add_special_tokens=False).ids
        own = pieces.ends > pieces.starts
        found = list(zip(pieces.starts, pieces.ends, strict=True))
        expected = naive_offsets(family, text)
        for i in range(len(expected)):
            assert own[i] == (expected[i][0] < expected[i][1])
            assert not own[i] or found[i] == expected[i]


@pytest.mark.parametrize("family", FAMILIES)
def test_special_pieces_stand_around_a_window(family: str) -> None:
    raw = build_tokenizer(family)
    tokenizer = PieceTokenizer(build_tokenizer(family))
    special = special_pieces(family)
    assert tokenizer.prefix == [raw.token_to_id(special["cls_token"])]
    assert tokenizer.suffix == [raw.token_to_id(special["sep_token"])]
    assert tokenizer.n_special == 2
    assert tokenizer.largest_id == raw.get_vocab_size() - 1


def test_a_tokenizer_may_have_no_special_pieces() -> None:
    raw = build_tokenizer("bert")
    raw.post_processor = None
    tokenizer = PieceTokenizer(raw)
    assert (tokenizer.prefix, tokenizer.suffix, tokenizer.n_special) == ([], [], 0)


@pytest.mark.parametrize("role", ["cls", "sep", "pad", "mask"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_literal_special_piece_is_plain_text(family: str, role: str) -> None:
    raw = build_tokenizer(family)
    literal = special_pieces(family)[f"{role}_token"]
    special = raw.token_to_id(literal)
    for text in (f"Ann {literal} Oslo", f"Ann {literal}{literal}Oslo", literal):
        raw.encode_special_tokens = False
        assert special in raw.encode(text, add_special_tokens=False).ids
        pieces = PieceTokenizer(raw)([text])[0]
        assert special not in pieces.ids
        assert len(pieces.ids) == len(pieces.starts) == len(pieces.ends)
        covered = {c for a, b in zip(pieces.starts, pieces.ends, strict=True) for c in range(a, b)}
        assert covered == {i for i, character in enumerate(text) if character != " "}


@pytest.mark.parametrize("family", SENTENCEPIECE)
def test_a_literal_special_piece_is_spelled(family: str) -> None:
    """If the model itself would find it. Each character is a piece in its own place."""
    raw = build_tokenizer(family)
    literal = special_pieces(family)["pad_token"]
    (found,) = PieceTokenizer(raw)([f"ﬁ {literal}x"])
    letters = [raw.token_to_id(character) for character in (*literal, "x")]
    own = found.ends > found.starts
    if family == "albert":  # where no special piece but this is found
        assert raw.encode("[SEP]", add_special_tokens=False).ids != [raw.token_to_id("[SEP]")]
    assert found.ids[own][2:].tolist() == letters
    assert found.starts[own][2:].tolist() == list(range(2, 2 + len(letters)))
    assert found.ends[own][2:].tolist() == list(range(3, 3 + len(letters)))


@pytest.mark.parametrize("family", SENTENCEPIECE)
def test_an_unknown_piece_stays_one(family: str) -> None:
    raw = build_tokenizer(family)
    unknown = raw.token_to_id(special_pieces(family)["unk_token"])
    (found,) = PieceTokenizer(raw)(["Ann ☃☃"])
    assert found.ids[-1] == unknown
    assert (found.starts[-1], found.ends[-1]) == (4, 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lower_bar_is_a_space_to_sentencepiece_alone(family: str) -> None:
    (found,) = PieceTokenizer(build_tokenizer(family))(["Ann▁▁is"])
    covered = {c for a, b in zip(found.starts, found.ends, strict=True) for c in range(a, b)}
    assert covered == ({0, 1, 2, 5, 6} if family in SENTENCEPIECE else set(range(7)))


def test_truncation_and_padding_are_switched_off() -> None:
    raw = build_tokenizer("bert")
    raw.enable_truncation(8)
    raw.enable_padding(length=20)
    long, short = PieceTokenizer(raw)([" ".join(SENTENCES), "a"])
    assert len(long.ids) > 100
    assert len(short.ids) == 1
    saved = Tokenizer.from_str(PieceTokenizer(raw).to_str())
    assert saved.truncation is None
    assert saved.padding is None


def test_truncation_of_the_teacher_is_switched_off(teacher_dir: Path) -> None:
    saved = (teacher_dir / "tokenizer.json").read_text("utf8")
    text = "word " * 1000
    assert len(Tokenizer.from_str(saved).encode(text).ids) < 1000  # the saved one does truncate
    pieces = PieceTokenizer.from_str(saved)([text, "word"])
    assert [len(each.ids) for each in pieces] == [1000, 1]


def test_text_and_bytes_round_trip() -> None:
    tokenizer = PieceTokenizer(build_tokenizer("bert"))
    for saved in (tokenizer.to_str(), tokenizer.to_str().encode("utf8")):
        again = PieceTokenizer.from_str(saved)
        assert again([SENTENCES[3]])[0].ids.tolist() == tokenizer([SENTENCES[3]])[0].ids.tolist()
        assert (again.prefix, again.suffix) == (tokenizer.prefix, tokenizer.suffix)


@pytest.mark.parametrize(
    "broken", ["", "{}", "no json", PieceTokenizer(build_tokenizer("bert")).to_str()[:500], b"\xff"]
)
def test_a_broken_file_is_named(broken: str | bytes) -> None:
    with pytest.raises(WeightsError, match=r"tokenizer\.json cannot be read"):
        PieceTokenizer.from_str(broken)


def test_a_tokenizer_without_pieces_is_refused() -> None:
    raw = build_tokenizer("bert")
    raw.normalizer = normalizers.Replace("a", "")
    with pytest.raises(WeightsError, match="no piece for the text 'a'"):
        PieceTokenizer(raw)


# Patterns that go back so often that the library for regular expressions gives up.
PATTERNS = [r"(a+)+$", r"(\p{L}+)+$", r"(a|a)*$", r"(\s+)+$", r"(\w+\s?)+$"]


def with_pattern(pattern: str, place: str) -> Tokenizer:
    raw = build_tokenizer("bert")
    if place == "normalizer":
        raw.normalizer = normalizers.Replace(Regex(pattern), "a")
    else:
        raw.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return raw


@pytest.mark.parametrize("place", ["normalizer", "pre-tokenizer"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_that_takes_too_long_is_refused(pattern: str, place: str) -> None:
    saved = with_pattern(pattern, place).to_str()
    with pytest.raises(WeightsError, match=r"The tokenizer fails on text: .*has a pattern"):
        PieceTokenizer.from_str(saved)


def test_a_text_on_which_the_tokenizer_fails_is_named() -> None:
    tokenizer = PieceTokenizer(with_pattern("(q+)+$", "pre-tokenizer"))
    assert len(tokenizer(["Ann", "qq"])) == 2
    with pytest.raises(WeightsError, match="fails on the text that begins with 'good qqq"):
        tokenizer(["Ann", "good " + "q" * 50 + "!"])


def test_a_tokenizer_without_a_piece_for_unknown_text_is_refused() -> None:
    saved = json.loads(build_tokenizer("bert").to_str())
    saved["model"]["unk_token"] = "nowhere"
    with pytest.raises(WeightsError, match="The tokenizer fails on text: "):
        PieceTokenizer.from_str(json.dumps(saved))


def test_the_largest_id_is_not_the_number_of_pieces() -> None:
    saved = json.loads(build_tokenizer("bert").to_str())
    n_pieces = len(saved["model"]["vocab"])
    assert PieceTokenizer.from_str(json.dumps(saved)).largest_id == n_pieces - 1
    piece = next(piece for piece in saved["model"]["vocab"] if piece.isalpha())
    saved["model"]["vocab"][piece] = 5000
    assert PieceTokenizer.from_str(json.dumps(saved)).largest_id == 5000


def test_no_texts_give_no_pieces() -> None:
    assert PieceTokenizer(build_tokenizer("bert"))([]) == []


TOKENIZERS = {family: PieceTokenizer(build_tokenizer(family)) for family in KINDS}


@given(text=st.text(max_size=40))
@settings(max_examples=100)
@pytest.mark.parametrize("family", KINDS)
def test_offsets_are_sorted_and_inside_the_text(family: str, text: str) -> None:
    pieces = TOKENIZERS[family]([text])[0]
    assert (pieces.starts <= pieces.ends).all()
    own = pieces.ends > pieces.starts
    for offsets in (pieces.starts, pieces.ends):
        assert (np.diff(offsets[own]) >= 0).all()
        assert ((offsets >= 0) & (offsets <= len(text))).all()
    if family in SPACES_INSIDE:
        parts = [text[a:b] for a, b in zip(pieces.starts, pieces.ends, strict=True)]
        assert parts == [part.strip() for part in parts]


@pytest.mark.parametrize("family", KINDS)
@given(texts=st.lists(st.text(max_size=12) | st.sampled_from(["[PAD]a", "<pad> b", " ", "▁x "])))
@settings(max_examples=40)
def test_a_text_has_the_same_pieces_among_others(family: str, texts: list[str]) -> None:
    tokenizer = TOKENIZERS[family]
    for text, found in zip(texts, tokenizer(texts), strict=True):
        for array, expected in zip(
            vars(found).values(), vars(tokenizer([text])[0]).values(), strict=True
        ):
            np.testing.assert_array_equal(array, expected)
