"""Words with entity tags, in the forms that annotation tools and shared tasks write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.tokens import Doc, DocBin

from scripts._columns import SUFFIXES
from scripts._custom import Noted, read_docs
from scripts._notes import Notes
from scripts.corpus import Dataset, make_corpus
from spacy_distil.errors import CorpusError

NLP = spacy.blank("en")


def read(path: Path, text: str) -> list[Noted]:
    path.write_text(text, encoding="utf8", newline="")
    return read_docs(path, NLP, Notes())


def entities(doc: Doc) -> list[tuple[str, str]]:
    return [(ent.text, ent.label_) for ent in doc.ents]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_documents_and_sentences(tmp_path: Path, suffix: str) -> None:
    text = (
        "-DOCSTART- -X- O O\r\n\r\nAnn NNP B-PER\r\nLee NNP I-PER\r\nran VBD O\r\n \r\n"
        "Rome - I-LOC\r\n# _ O\r\n-DOCSTART-\t7\tO\r\n\r\nBob NNP B-PER"
    )
    first, second = read(tmp_path / f"a{suffix}", text)
    assert entities(first.doc) == [("Ann Lee", "PER"), ("Rome", "LOC")]
    assert [token.tag_ for token in first.doc] == ["NNP", "NNP", "VBD", "", ""]
    assert [sent.text for sent in first.doc.sents] == ["Ann Lee ran", "Rome #"]
    assert first.doc[2].ent_iob_ == "O"
    assert first.notes.counts["entities that began with I- repaired"] == 1
    assert entities(second.doc) == [("Bob", "PER")]


@pytest.mark.parametrize(
    "text",
    [
        "New B-LOC\nYork I-LOC\nis O\n\nAnn I-PER\n\n",
        "New\tB-LOC\nYork\tL-LOC\nis\tO\n\nAnn\tU-PER\n",
        "# a comment\nNew x y B-LOC\nYork x y E-LOC\nis x y O\n\nAnn\tx\ty\tS-PER",
        "New|B-LOC York|I-LOC is|O\nAnn|I-PER\n",
        "New|NNP|I-LOC York|NNP|I-LOC is|VBZ|O\n\nAnn|NNP|B-PER",
    ],
)
def test_forms_of_the_same_sentences(tmp_path: Path, text: str) -> None:
    """Without marks of documents, each sentence is one."""
    docs = [noted.doc for noted in read(tmp_path / "a.iob", text)]
    assert [doc.text for doc in docs] == ["New York is ", "Ann "]
    assert [entities(doc) for doc in docs] == [[("New York", "LOC")], [("Ann", "PER")]]
    assert docs[0][2].ent_iob_ == "O"


@pytest.mark.parametrize("start", ["", "-DOCSTART- O\r\n\r\n"])
def test_a_byte_order_mark_is_no_part_of_a_word(tmp_path: Path, start: str) -> None:
    (noted,) = read(tmp_path / "a.conll", f"\ufeff{start}Ann B-PER\r\nran O\r\n")
    assert [token.text for token in noted.doc] == ["Ann", "ran"]
    assert entities(noted.doc) == [("Ann", "PER")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Ann B-PER\nran\n", ":2: 'ran'; expected a word first and, last, its entity tag"),
        ("Ann B-PER\nran VBD\n", ":2: 'ran VBD'; expected"),
        ("Ann NNP B-PER\nran O\n", ":1: a sentence whose lines have 2 and 3 columns"),
        ("1 Ann B-PER\n2 ran O\n", ":1: the first column numbers the words"),
        ("Ann PER\n", ":1: 'Ann PER'; .* spacy convert"),
        ("\n\n", ": no document with text in it"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(CorpusError, match=rf"a\.conll{problem}"):
        read(tmp_path / "a.conll", text)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"unknown kind of file '\.xml'.*\.conllu.*spacy convert"):
        read(tmp_path / "a.xml", "<x/>")


def conllu(words: str, tags: str) -> str:
    pairs = enumerate(zip(words.split(), tags.split(), strict=True), start=1)
    rows = (f"{i}\t{word}\t_\tX\t_\t_\t_\t_\t_\tNER={tag}" for i, (word, tag) in pairs)
    return "\n".join(rows) + "\n\n"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("train.conllu", conllu("Ann saw Rome", "B-PER O B-LOC")),
        ("train.conll", "Ann B-PER\nsaw O\nRome B-LOC\n\n"),
        ("train.iob", "Ann|B-PER saw|O Rome|B-LOC\n"),
    ],
)
def test_they_make_a_corpus(tmp_path: Path, name: str, sentence: str) -> None:
    train = tmp_path / name
    train.write_text(sentence * 30, encoding="utf8")
    paths: dict[str, Path | None] = {"train": train}
    summary: dict[str, Any] = make_corpus(Dataset.custom, tmp_path / "out", paths=paths)
    assert [summary["splits"][split]["docs"] for split in ("train", "dev", "test")] == [24, 3, 3]
    assert summary["splits"]["train"]["entities"] == {"LOC": 24, "PER": 24}
    assert summary["splits"]["train"]["sentences"] == 24
    (doc, *_) = DocBin().from_disk(tmp_path / "out" / "train.spacy").get_docs(NLP.vocab)
    assert entities(doc) == [("Ann", "PER"), ("Rome", "LOC")]
