"""Reading, packing, caching and the split into training and held-out blocks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.tokens import DocBin

from spacy_distil.distillation import reading
from spacy_distil.distillation.config import CorpusSettings
from spacy_distil.distillation.corpus import Blocks, Corpus, load_corpus, plan_corpus
from spacy_distil.distillation.packing import pack, tokenize, write_blocks
from spacy_distil.distillation.reading import Part, find_files, read_parts
from spacy_distil.distillation.teachers import Teacher, load_teacher
from spacy_distil.errors import ConfigError, CorpusError

TeacherDir = Callable[..., Path]
FIRST, LAST = -1, -2


@pytest.fixture(scope="module")
def teacher(teacher_dir: TeacherDir) -> Teacher:
    return load_teacher(str(teacher_dir("bert", head=True)))


def load(teacher: Teacher, cache: Path, **settings: object) -> Corpus:
    corpus = CorpusSettings(**{"block_size": 16, "dev_fraction": 0.0, **settings})
    return load_corpus(plan_corpus(corpus, teacher), corpus, teacher, cache=cache)


def all_blocks(blocks: Blocks) -> list[list[int]]:
    return [block.tolist() for block in blocks[range(len(blocks))]]


# Reading


def test_text_has_documents_between_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n two \r\n\r\n\n\nthree".encode())
    documents = [part for part in read_parts(path) if part.text]
    assert documents == [Part("one\ntwo", True), Part("three", True)]


def test_long_document_comes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PART_CHARACTERS", 10)
    path = tmp_path / "a.txt"
    path.write_text("eins zwei drei\nvier\nfuenf sechs\nsieben\n\nacht\n")
    parts = list(read_parts(path))
    assert [part.ends for part in parts if part.text][-2:] == [True, True]
    assert "".join(p.text for p in parts) == "eins zwei drei\nvier\nfuenf sechs\nsiebenacht"
    assert len([part for part in parts if part.text]) == 4


def test_jsonl_and_spacy(tmp_path: Path) -> None:
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text('{"text": "Grüße", "meta": 1}\n\n{"text": "zwei"}\n', encoding="utf-8")
    assert list(read_parts(jsonl)) == [Part("Grüße", True), Part("zwei", True)]
    nlp = spacy.blank("en")
    binary = tmp_path / "a.spacy"
    DocBin(docs=[nlp("A first one."), nlp("And  another")]).to_disk(binary)
    assert list(read_parts(binary)) == [Part("A first one.", True), Part("And  another", True)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\nna\xefve\n", r"a\.txt, line 2: byte 0xef .* not UTF-8.*iconv"),
        ("a.txt", "x".encode("utf-16"), r"a\.txt, line 1: byte 0xff"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'{"txt": "x"}\n', r"a\.jsonl, line 1: no \"text\" in"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl, line 1: no \"text\" in"),
        ("a.jsonl", b'["x"]\n', r"a\.jsonl, line 1: no \"text\" in"),
        ("a.jsonl", b'{"text": "x"}\n\xff\n', r"a\.jsonl, line 2: byte 0xff"),
        ("a.spacy", b"not a DocBin", r"a\.spacy is not a \.spacy file, or is damaged"),
    ],
)
def test_unreadable_content_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        list(read_parts(path))


def test_directories_are_searched(tmp_path: Path) -> None:
    for name in ("b.txt", "a.jsonl", "c.spacy", "notes.md"):
        (tmp_path / name).touch()
    found = find_files([tmp_path, tmp_path / "b.txt"], setting="corpus.train")
    assert [path.name for path in found] == ["a.jsonl", "b.txt", "c.spacy", "b.txt"]


def test_paths_that_name_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"corpus\.dev: .*gone\.txt does not exist"):
        find_files([tmp_path / "gone.txt"], setting="corpus.dev")
    with pytest.raises(CorpusError, match=r"holds none of \*\.txt"):
        find_files([tmp_path], setting="corpus.dev")
    (tmp_path / "a.csv").touch()
    with pytest.raises(CorpusError, match=r"suffix '\.csv'; .* \.txt, \.jsonl, \.spacy"):
        find_files([tmp_path / "a.csv"], setting="corpus.dev")


# Packing

documents = st.lists(
    st.tuples(st.lists(st.integers(0, 9), max_size=30), st.booleans()), max_size=12
)


@given(documents=documents, block_size=st.integers(3, 12))
def test_packing_loses_no_piece(documents: list[tuple[list[int], bool]], block_size: int) -> None:
    blocks = list(pack(documents, block_size=block_size, first=FIRST, last=LAST))
    for block in blocks:
        assert block[0] == FIRST
        assert block[-1] == LAST
        assert len(block) > 2
        assert FIRST not in block[1:]
    assert all(len(block) == block_size for block in blocks[:-1])
    assert all(len(block) <= block_size for block in blocks[-1:])
    packed = [piece for block in blocks for piece in block if piece >= 0]
    assert packed == [piece for pieces, _ in documents for piece in pieces]


def test_documents_are_separated_within_a_block() -> None:
    parts = [([1, 2], False), ([3], True), ([], True), ([4, 5], True), ([6], True)]
    blocks = list(pack(parts, block_size=7, first=FIRST, last=LAST))
    assert blocks == [[FIRST, 1, 2, 3, LAST, 4, LAST], [FIRST, 5, LAST, 6, LAST]]


def test_separator_opens_no_block() -> None:
    blocks = list(pack([([1, 2], True), ([3], True)], block_size=4, first=FIRST, last=LAST))
    assert blocks == [[FIRST, 1, 2, LAST], [FIRST, 3, LAST]]


def test_tokenizing_is_not_truncated_and_takes_special_pieces_for_text(teacher: Teacher) -> None:
    tokenizer = teacher.tokenizer
    long = "ba be bi " * 20
    (pieces, _), (spelled, ends) = tokenize(
        [Part(long, True), Part("ba [MASK] [SEP]", False)], tokenizer
    )
    assert tokenizer.convert_ids_to_tokens(pieces) == long.split()
    assert not ends
    assert not {tokenizer.mask_token_id, tokenizer.sep_token_id} & set(spelled)
    # The tokenizer that is saved with the student is as it was.
    assert not tokenizer.backend_tokenizer.encode_special_tokens


def test_arrow_file_limits_blocks(tmp_path: Path) -> None:
    blocks = iter([[1, 2, 3]] * 5)
    assert write_blocks(blocks, tmp_path / "a.arrow", limit=3) == (3, 9)
    assert next(blocks) == [1, 2, 3]  # only one was read in vain


# The corpus as a whole


def test_corpus_holds_every_word_of_its_files(
    teacher: Teacher, text_file: Path, tmp_path: Path
) -> None:
    corpus = load(teacher, tmp_path, train=str(text_file))
    words = [
        teacher.tokenizer.convert_ids_to_tokens(int(piece))
        for block in all_blocks(corpus.train)
        for piece in block
        if piece not in teacher.tokenizer.all_special_ids
    ]
    assert words == text_file.read_text().split()
    source = corpus.sources["train"]
    assert source.files == [(str(text_file), text_file.stat().st_size)]
    assert source.blocks == len(corpus.train)
    assert source.pieces == sum(map(len, all_blocks(corpus.train)))


def test_blocks_are_memory_mapped(teacher: Teacher, text_file: Path, tmp_path: Path) -> None:
    corpus = load(teacher, tmp_path, train=str(text_file))
    files = [entry["filename"] for entry in corpus.train.dataset.cache_files]
    assert [Path(file).name for file in files] == ["blocks.arrow"]
    assert files[0] in Path("/proc/self/maps").read_text()


def test_blocks_in_any_order(teacher: Teacher, text_file: Path, tmp_path: Path) -> None:
    corpus = load(teacher, tmp_path, train=str(text_file), dev_fraction=0.2)
    rows = list(range(len(corpus.train)))
    random.Random(0).shuffle(rows)
    every = all_blocks(corpus.train)
    assert [block.tolist() for block in corpus.train[rows]] == [every[row] for row in rows]


def test_cache_is_reused_until_content_or_settings_change(
    teacher: Teacher, text_file: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(text_file.read_bytes())
    cache = tmp_path / "cache"
    first = load(teacher, cache, train=str(text))
    built = next(cache.iterdir()) / "blocks.arrow"
    stamp = built.stat().st_mtime_ns

    moved = text.rename(tmp_path / "moved.txt")
    moved.touch()
    again = load(teacher, cache, train=str(moved))
    assert again.sources["train"].fingerprint == first.sources["train"].fingerprint
    assert built.stat().st_mtime_ns == stamp
    assert len(list(cache.iterdir())) == 1

    moved.write_bytes(moved.read_bytes().replace(b"ba", b"be", 1))  # as long as before
    load(teacher, cache, train=str(moved))
    load(teacher, cache, train=str(moved), block_size=20)
    load(teacher, cache, train=str(moved), max_blocks=2)
    assert len(list(cache.iterdir())) == 4


def test_unfinished_cache_is_no_cache(teacher: Teacher, tmp_path: Path) -> None:
    bad = tmp_path / "a.jsonl"
    bad.write_text(json.dumps({"text": "ba be"}) + "\nnonsense\n")
    cache = tmp_path / "cache"
    with pytest.raises(CorpusError, match="line 2"):
        load(teacher, cache, train=str(bad))
    assert list(cache.iterdir()) == []


def test_held_out_blocks_are_spread_and_not_trained_on(
    teacher: Teacher, text_file: Path, tmp_path: Path
) -> None:
    whole = load(teacher, tmp_path, train=str(text_file))
    split = load(teacher, tmp_path, train=str(text_file), dev_fraction=0.1)
    n = len(whole.train)
    held_out = split.held_out.rows
    assert len(held_out) == round(n / 10)
    assert np.diff(held_out).min() >= 9
    assert sorted([*held_out, *split.train.rows]) == list(range(n))
    few = load(teacher, tmp_path, train=str(text_file), dev_fraction=0.1, max_dev_blocks=3)
    assert len(few.held_out) == 3


def test_held_out_text_of_its_own(teacher: Teacher, text_file: Path, tmp_path: Path) -> None:
    dev = tmp_path / "dev.txt"
    dev.write_text("ba be bi bo bu " * 30)
    corpus = load(teacher, tmp_path, train=str(text_file), dev=str(dev), max_dev_blocks=5)
    assert len(corpus.held_out) == 5
    words = teacher.tokenizer.convert_ids_to_tokens(all_blocks(corpus.held_out)[0])
    assert words[:4] == ["[CLS]", "ba", "be", "bi"]


def test_empty_corpora(teacher: Teacher, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"corpus\.train is empty.*--corpus\.train PATH"):
        load(teacher, tmp_path, train=[])
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n\n")
    with pytest.raises(CorpusError, match=r"corpus\.train: no text in .*empty\.txt"):
        load(teacher, tmp_path, train=str(empty))
    tiny = tmp_path / "tiny.txt"
    tiny.write_text("ba be bi")
    with pytest.raises(CorpusError, match=r"makes 1 blocks.*nothing is left to train on"):
        load(teacher, tmp_path, train=str(tiny), dev_fraction=0.1)


def test_block_longer_than_the_teacher_reads(
    teacher: Teacher, text_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"corpus\.block_size = 33: .* at most 32"):
        load(teacher, tmp_path, train=str(text_file), block_size=33)
