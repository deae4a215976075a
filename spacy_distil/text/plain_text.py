"""Read corpora of any size as plain text: `.txt`, `.jsonl` and `.spacy`.

A `.txt` file has one paragraph per line, and a blank line between documents. (In `documents`, which
reads test sets, each line is a document.) A `.jsonl` file has one document per line.

The memory that this takes is one part of a document for `.txt`, one line for `.jsonl`, and the
whole file for `.spacy`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from spacy_distil.errors import CorpusError
from spacy_distil.text.readers import cut_text, read_jsonl, read_paragraphs

SUFFIXES = (".txt", ".jsonl", ".spacy")

# A document longer than this comes in several parts, cut between paragraphs or words if it has
# any. No part is longer than three times this.
PART_CHARACTERS = 100_000
# Halves of characters, which JSON can spell and UTF-8 cannot.
SURROGATES = re.compile("[\ud800-\udfff]")


class Part(NamedTuple):
    """A document, or a part of a long one.

    text: its text.
    ends: whether the document ends with it.
    """

    text: str
    ends: bool


def find_files(paths: Sequence[str | Path], *, setting: str) -> list[Path]:
    """List the corpus files among `paths`, and those in directories, sorted within each.

    setting: the setting that has these paths, for errors, e.g. "corpus.train".
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
            if not inside:
                raise CorpusError(
                    f"{setting}: directory {path} holds none of *{', *'.join(SUFFIXES)}"
                )
            files += inside
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
    """Return the size of a corpus file in bytes."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error


def read_parts(path: Path) -> Iterator[Part]:
    """Yield the documents of one file in parts. A CorpusError names the file and the line."""
    readers = {".txt": _read_text, ".jsonl": _read_jsonl, ".spacy": _read_spacy}
    try:
        yield from readers[path.suffix](path)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_text(path: Path) -> Iterator[Part]:
    """Join paragraphs to documents, which end with a blank line."""
    texts: list[str] = []
    size = 0
    has_text = False  # of the document so far
    for text, starts_line in read_paragraphs(path, PART_CHARACTERS):
        if starts_line and not text:
            if has_text:
                yield Part("".join(texts), ends=True)
            texts, size, has_text = [], 0, False
            continue
        texts.append(f"\n{text}" if starts_line and has_text else text)
        size += len(text)
        has_text = True
        if size > PART_CHARACTERS:
            yield Part("".join(texts), ends=False)
            texts, size = [], 0
    if has_text:
        yield Part("".join(texts), ends=True)


def _read_jsonl(path: Path) -> Iterator[Part]:
    """Read one document per line, with a replacement character for each half of a character."""
    for text in read_jsonl(path):
        yield from _to_parts(SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text))


def _read_spacy(path: Path) -> Iterator[Part]:
    """Read a spaCy `DocBin`. Annotations are ignored."""
    from spacy.tokens import DocBin
    from spacy.vocab import Vocab

    try:
        docs = DocBin().from_disk(path)
    except OSError:
        raise
    except Exception as error:  # a damaged file can fail in zlib, msgpack or spaCy
        raise CorpusError(
            f"{path} is not a .spacy file, or is damaged: {type(error).__name__}: {error}"
        ) from error
    for doc in docs.get_docs(Vocab()):
        yield from _to_parts(doc.text)


def _to_parts(text: str) -> Iterator[Part]:
    """Cut a whole document."""
    *pieces, last = cut_text(text, PART_CHARACTERS)
    yield from (Part(piece, ends=False) for piece in pieces)
    yield Part(last, ends=True)
