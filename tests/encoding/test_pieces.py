from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from spacy_distil.encoding import PieceTokenizer
from spacy_distil.errors import WeightsError
from tests.util import FAMILIES, SENTENCES, build_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_are_those_of_the_tokenizer(family: str) -> None:
    raw = build_tokenizer(family)
    for text, pieces in zip(
        SENTENCES, PieceTokenizer(build_tokenizer(family))(SENTENCES), strict=True
    ):
        encoding = raw.encode(text, add_special_tokens=False)
        assert pieces.ids.tolist() == encoding.ids
        assert list(zip(pieces.starts, pieces.ends, strict=True)) == encoding.offsets


@pytest.mark.parametrize(
    ("family", "prefix", "suffix"), [("bert", "[CLS]", "[SEP]"), ("roberta", "<s>", "</s>")]
)
def test_special_pieces_stand_around_a_window(family: str, prefix: str, suffix: str) -> None:
    raw = build_tokenizer(family)
    tokenizer = PieceTokenizer(build_tokenizer(family))
    assert tokenizer.prefix == [raw.token_to_id(prefix)]
    assert tokenizer.suffix == [raw.token_to_id(suffix)]
    assert tokenizer.n_special == 2
    assert tokenizer.vocab_size == raw.get_vocab_size()


def test_a_tokenizer_may_have_no_special_pieces() -> None:
    raw = build_tokenizer("bert")
    raw.post_processor = None
    tokenizer = PieceTokenizer(raw)
    assert (tokenizer.prefix, tokenizer.suffix, tokenizer.n_special) == ([], [], 0)


@pytest.mark.parametrize(
    ("family", "literal"),
    [("bert", "[SEP]"), ("bert", "[CLS]"), ("bert", "[PAD]"), ("roberta", "</s>")],
)
def test_a_literal_special_piece_is_plain_text(family: str, literal: str) -> None:
    raw = build_tokenizer(family)
    text = f"Ann {literal} Oslo"
    special = raw.token_to_id(literal)
    assert special in raw.encode(text, add_special_tokens=False).ids
    pieces = PieceTokenizer(raw)([text])[0]
    assert special not in pieces.ids
    assert set(range(4, 4 + len(literal))) <= {
        c for a, b in zip(pieces.starts, pieces.ends, strict=True) for c in range(a, b)
    }


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
    json = (teacher_dir / "tokenizer.json").read_text("utf8")
    text = "word " * 1000
    assert len(Tokenizer.from_str(json).encode(text).ids) < 1000  # the saved one does truncate
    pieces = PieceTokenizer.from_str(json)([text, "word"])
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


def test_no_texts_give_no_pieces() -> None:
    assert PieceTokenizer(build_tokenizer("bert"))([]) == []


@given(text=st.text(max_size=40))
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_offsets_are_sorted_and_inside_the_text(family: str, text: str) -> None:
    pieces = PieceTokenizer(build_tokenizer(family))([text])[0]
    for offsets in (pieces.starts, pieces.ends):
        assert (np.diff(offsets) >= 0).all()
        assert ((offsets >= 0) & (offsets <= len(text))).all()
    assert (pieces.starts <= pieces.ends).all()
