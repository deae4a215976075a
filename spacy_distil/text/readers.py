"""Read lines, paragraphs and records of `.txt` and `.jsonl` files. All files are UTF-8."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from spacy_distil.errors import CorpusError


def read_paragraphs(path: Path, max_characters: int) -> Iterator[tuple[str, bool]]:
    """Yield each line as one paragraph, stripped; a long one comes in several pieces.

    max_characters: the most characters to read at once. A longer line is cut into pieces.
    RETURNS: (text, starts_line) of each piece.
    """
    rest, starts_line = "", True
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            while text := file.readline(max_characters):
                rest = rest + text if rest or not starts_line else text.lstrip()
                if text.endswith("\n"):
                    yield rest.rstrip(), starts_line
                    rest, starts_line = "", True
                    continue
                *pieces, rest = cut_text(rest, max_characters)
                for piece in pieces:
                    yield piece, starts_line
                    starts_line = False
            if rest:
                yield rest.rstrip(), starts_line
    except UnicodeDecodeError:
        for _ in read_lines(path):  # raises the error that names line and byte
            pass
        raise


def read_jsonl(path: Path, original: bool = False) -> Iterator[tuple[str, str | None]]:
    """Yield the text of each line, {"text": "..."}, and what it is a translation of.

    Other keys and empty lines are ignored.

    original: read the key "original", too. None for lines that have none, or null.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(
                f"{path}, line {number}: not valid JSON ({error.msg}, column {error.colno}). "
                f'Each line must be an object such as {{"text": "..."}}'
            ) from error
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise CorpusError(
                f'{path}, line {number}: no "text" in {line.strip()[:80]!r}. '
                f'Each line must be an object such as {{"text": "..."}}'
            )
        source = record.get("original") if original else None
        if source is not None and not (isinstance(source, str) and source.strip()):
            raise CorpusError(
                f'{path}, line {number}: "original" is {source!r}. Expected the text that "text" '
                "is a translation of, or null."
            )
        yield text, source


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line. A byte order mark is dropped."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise CorpusError(
                    f"{path}, line {number}: byte {error.object[error.start]:#04x} at position "
                    f"{error.start} is not UTF-8. Convert the file, for example with: "
                    f"iconv -f latin1 -t utf-8"
                ) from error


def cut_text(text: str, max_characters: int) -> Iterator[str]:
    """Cut a text into pieces of at most `max_characters`, before white space if there is any."""
    start = 0
    while len(text) - start > max_characters:
        end = start + max_characters
        space = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
        end = end if space < 0 else space
        yield text[start:end]
        start = end
    yield text[start:]
