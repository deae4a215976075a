from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import spacy
from spacy.tokens import Doc, DocBin

from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.text.documents import read_documents


def test_text_and_jsonl(write: Callable[[str, str], Path]) -> None:
    nlp = spacy.blank("en")
    lines = write("a.txt", "\ufeffOne text.\n  Don't strip. \r\nLast\n   \n")
    told: list[str] = []
    documents = read_documents(lines, nlp, log=told.append)
    assert documents.texts == ["One text.", "Don't strip.", "Last"]
    assert documents.gold is None
    assert [token.text for token in documents.docs[1]][:2] == ["Do", "n't"]
    assert documents.docs[0].vocab is nlp.vocab
    assert len(told) == 1
    assert "3 documents, each line is one" in told[0]
    joined = read_documents(lines, nlp, txt_documents="blank_lines")
    assert joined.texts == ["One text.\nDon't strip.\nLast"]
    assert read_documents(lines, nlp, limit=2).texts == documents.texts[:2]
    records = write("a.jsonl", '{"text": "One\\ntwo", "label": 1}\n\n{"text": ""}\n{"text": "3"}\n')
    assert read_documents(records, nlp).texts == ["One\ntwo", "3"]


def test_annotated_documents(tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    doc = Doc(nlp.vocab, ["can't", "go"], spaces=[True, False], tags=["MD", "VB"])
    DocBin(docs=[doc, doc, doc]).to_disk(tmp_path / "a.spacy")
    documents = read_documents(tmp_path / "a.spacy", nlp, limit=2)
    assert documents.gold is not None
    assert len(documents.gold) == len(documents.docs) == 2
    assert [token.text for token in documents.docs[0]] == ["ca", "n't", "go"]
    assert [token.tag_ for token in documents.docs[0]] == [""] * 3
    assert [token.tag_ for token in documents.gold[0].reference] == ["MD", "VB"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", " \n", r"a\.txt has no text in it"),
        ("a.jsonl", '{"text": 3}', r'line 1: no "text"'),
        ("a.jsonl", "{", r"line 1: not valid JSON"),
        ("a.csv", "a", r"expected a \.spacy file"),
        (".", "", ""),
    ],
)
def test_what_cannot_be_read(
    write: Callable[[str, str], Path], tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = write(name, text) if name != "." else tmp_path / "nowhere.txt"
    with pytest.raises(CorpusError, match=message or "No documents at"):
        read_documents(path, spacy.blank("en"))


def test_not_utf8_and_a_wrong_limit(tmp_path: Path) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(CorpusError, match=r"line 2: byte 0xe9 at position 3 is not UTF-8"):
        read_documents(path, spacy.blank("en"))
    with pytest.raises(ConfigError, match="limit = -1"):
        read_documents(path, spacy.blank("en"), limit=-1)
