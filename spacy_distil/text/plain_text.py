"""Reading documents from text files, JSONL and `.spacy`.

Of a text file a part of a document is in memory at a time, of JSONL a line. A `.spacy` file is read
whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from spacy_distil.errors import CorpusError
from spacy_distil.text.documents import read_jsonl, read_lines

SUFFIXES = (".txt", ".jsonl", ".spacy")

# A document longer than this comes in several parts, cut between paragraphs or words where it has
# any. No part is longer than three times this.
PART_CHARACTERS = 100_000
# Halves of characters, which JSON can spell and UTF-8 cannot.
SURROGATES = re.compile("[\ud800-\udfff]")


class Part(NamedTuple):
    """A piece of text. ends: whether the document ends with it."""

    text: str
    ends: bool


def find_files(paths: Sequence[str | Path], *, setting: str) -> list[Path]:
    """The corpus files that `paths` name, those in directories included, sorted within each.

    setting: where the paths come from, for errors, e.g. "corpus.train".
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
            if not found:
                raise CorpusError(
                    f"{setting}: directory {path} holds none of *{', *'.join(SUFFIXES)}"
                )
            files += found
        elif not path.exists():
            raise CorpusError(f"{setting}: {path} does not exist (looked from {Path.cwd()})")
        elif path.suffix not in SUFFIXES:
            raise CorpusError(
                f"{setting}: {path} has the suffix {path.suffix!r}; a corpus file must be one of "
                f"{', '.join(SUFFIXES)}"
            )
        else:
            files.append(path)
    return files


def file_size(path: Path) -> int:
    """In bytes."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error


def read_parts(path: Path) -> Iterator[Part]:
    """The documents of one file. What cannot be read is a `CorpusError` naming file and line."""
    readers = {".txt": _read_text, ".jsonl": _read_jsonl, ".spacy": _read_spacy}
    try:
        yield from readers[path.suffix](path)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_text(path: Path) -> Iterator[Part]:
    """One paragraph per line, a blank line between documents."""
    texts: list[str] = []
    size = 0
    begun = False  # whether the document has any text yet
    for text, opens in _read_paragraphs(path):
        if opens and not text:
            if begun:
                yield Part("".join(texts), ends=True)
            texts, size, begun = [], 0, False
            continue
        texts.append(f"\n{text}" if opens and begun else text)
        size += len(text)
        begun = True
        if size > PART_CHARACTERS:
            yield Part("".join(texts), ends=False)
            texts, size = [], 0
    if begun:
        yield Part("".join(texts), ends=True)


def _read_paragraphs(path: Path) -> Iterator[tuple[str, bool]]:
    """Stripped lines, long ones in pieces, and whether each is the beginning of a line."""
    rest, opens = "", True
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            while text := file.readline(PART_CHARACTERS):
                rest = rest + text if rest or not opens else text.lstrip()
                if text.endswith("\n"):
                    yield rest.rstrip(), opens
                    rest, opens = "", True
                    continue
                *pieces, rest = _cut(rest)
                for piece in pieces:
                    yield piece, opens
                    opens = False
            if rest:
                yield rest.rstrip(), opens
    except UnicodeDecodeError:
        for _ in read_lines(path):  # which names line and byte
            pass
        raise


def _read_jsonl(path: Path) -> Iterator[Part]:
    """One document per line: {"text": "..."}; other keys are ignored."""
    for text in read_jsonl(path):
        yield from _parts(SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text))


def _parts(text: str) -> Iterator[Part]:
    """A whole document."""
    *pieces, last = _cut(text)
    yield from (Part(piece, ends=False) for piece in pieces)
    yield Part(last, ends=True)


def _cut(text: str) -> Iterator[str]:
    """In pieces of at most `PART_CHARACTERS`, cut before white space where there is any."""
    start = 0
    while len(text) - start > PART_CHARACTERS:
        end = start + PART_CHARACTERS
        space = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
        end = end if space < 0 else space
        yield text[start:end]
        start = end
    yield text[start:]


def _read_spacy(path: Path) -> Iterator[Part]:
    """spaCy's `DocBin`; annotations are ignored."""
    from spacy.tokens import DocBin
    from spacy.vocab import Vocab

    try:
        docs = DocBin().from_disk(path)
    except OSError:
        raise
    except Exception as error:  # zlib, msgpack: whatever a damaged file runs into first
        raise CorpusError(
            f"{path} is not a .spacy file, or is damaged: {type(error).__name__}: {error}"
        ) from error
    for doc in docs.get_docs(Vocab()):
        yield from _parts(doc.text)
