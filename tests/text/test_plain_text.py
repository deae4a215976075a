"""The documents of `.txt` files: one meaning for everything that reads text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from spacy_distil.errors import ConfigError
from spacy_distil.text import plain_text
from spacy_distil.text.plain_text import TxtDocuments, TxtFiles, read_parts, read_texts


@pytest.mark.parametrize(
    ("text", "documents", "expected"),
    [
        ("One.\nTwo.\nThree.\n", "auto", ["One.", "Two.", "Three."]),
        # Blank lines at the ends of a file divide nothing.
        ("\n \n One.\r\nTwo.\n\n\n", "auto", ["One.", "Two."]),
        ("One.\nTwo.\n \t\u00a0\n\nThree.", "auto", ["One.\nTwo.", "Three."]),
        ("One.\nTwo.\n\nThree.", "lines", ["One.", "Two.", "Three."]),
        ("One.\nTwo.\nThree.\n", "blank_lines", ["One.\nTwo.\nThree."]),
        ("\ufeffOne.", "auto", ["One."]),
        (" \n\n", "auto", []),
        ("", "lines", []),
    ],
)
def test_documents_of_a_txt_file(
    write: Callable[[str, str], Path], text: str, documents: TxtDocuments, expected: list[str]
) -> None:
    assert list(read_texts(write("a.txt", text), TxtFiles(documents))) == expected


@pytest.mark.parametrize("documents", ["auto", "lines"])
def test_long_lines_come_in_parts(
    write: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    documents: TxtDocuments,
) -> None:
    monkeypatch.setattr(plain_text, "PART_CHARACTERS", 20)
    lines = ["a few words " * 9 + "end", "short", "x" * 75]
    path = write("a.txt", "\n".join(lines) + "\n")
    parts = list(read_parts(path, TxtFiles(documents)))
    assert max(len(part.text) for part in parts) <= 60
    assert sum(part.ends for part in parts) == 3
    assert [text.strip() for text in read_texts(path, TxtFiles(documents))] == lines


def test_the_log_says_how_files_were_divided(write: Callable[[str, str], Path]) -> None:
    txt = TxtFiles()
    lines = write("lines.txt", "One.\nTwo.\nThree.\n")
    list(read_parts(lines, txt))
    for name in ("a.txt", "b.txt"):
        list(read_parts(write(name, "One.\nTwo.\n\nThree.\n"), txt))
    list(read_parts(write("a.jsonl", '{"text": "One."}'), txt))
    told: list[str] = []
    txt.tell(told.append)
    assert told == [
        f'{lines}: 3 documents, each line is one (3 lines with text; txt_documents = "auto")',
        "2 .txt files: 4 documents, divided by blank lines "
        '(6 lines with text; txt_documents = "auto")',
    ]


def test_another_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="txt_documents = 'paragraphs': expected one of auto, li"):
        TxtFiles("paragraphs")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n_lines", "documents", "is_doubtful"),
    [(500, "auto", True), (500, "blank_lines", False), (100, "auto", False)],
)
def test_a_stray_blank_line_among_many_lines_is_told(
    write: Callable[[str, str], Path],
    n_lines: int,
    documents: TxtDocuments,
    is_doubtful: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write("a.txt", "A line.\n" * n_lines + "\n" + "A line.\n" * n_lines)
    txt = TxtFiles(documents)
    assert len(list(read_texts(path, txt))) == 2
    txt.tell(lambda message: None)
    assert ("few blank lines for so many lines" in capsys.readouterr().out) is is_doubtful
