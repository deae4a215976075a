"""Blocks of a corpus, and pieces per word."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.students.sample_text import pieces_per_word, read_blocks
from spacy_distil.students.teachers import Teacher, load_teacher
from tests.teachers import WORDS


@pytest.fixture
def teacher(teacher_dir: Callable[..., Path]) -> Teacher:
    return load_teacher(str(teacher_dir("bert", head=True)))


def test_pieces_per_word(teacher: Teacher, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("ba be\n\nbi, bo\n")  # the comma is a word and an unknown piece
    assert pieces_per_word(path, teacher, setting="--corpus") == 1
    with pytest.raises(ConfigError, match="txt_documents = 'pages'"):
        pieces_per_word(path, teacher, setting="--corpus", txt_documents="pages")  # type: ignore[arg-type]
    assert pieces_per_word(None, teacher, setting="--corpus") > 0.9
    path.write_text("\n\n")
    with pytest.raises(CorpusError, match=r"--corpus: no text in .*text\.txt"):
        pieces_per_word(path, teacher, setting="--corpus")
    with pytest.raises(CorpusError, match=r"--corpus: no text in .*text\.txt"):
        read_blocks(path, teacher, setting="--corpus")


def test_blocks_come_from_all_files(teacher: Teacher, tmp_path: Path) -> None:
    words = {"a.txt": WORDS[:20], "b.txt": WORDS[20:40], "c.txt": WORDS[40:]}
    rng = random.Random(0)
    for name, file_words in words.items():
        length = 10 if name == "a.txt" else 2000
        (tmp_path / name).write_text(" ".join(rng.choices(file_words, k=length)) + "\n")
    blocks = read_blocks(tmp_path, teacher, setting="--corpus", n_blocks=9)
    # The short file makes one block; the others share the rest.
    assert [len(block) for block in blocks] == [12, *[32] * 8]
    vocabulary = teacher.tokenizer.get_vocab()
    of_file = [{vocabulary[word] for word in file_words} for file_words in words.values()]
    for block, number in zip(blocks, [0, *[1] * 4, *[2] * 4], strict=True):
        assert set(block[1:-1].tolist()) <= of_file[number]
        assert (block[0], block[-1]) == (vocabulary["[CLS]"], vocabulary["[SEP]"])
