"""Reading documents from text files, JSONL and `.spacy`, in memory for a part of one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from spacy_distil.documents import read_jsonl, read_lines
from spacy_distil.errors import CorpusError

SUFFIXES = (".txt", ".jsonl", ".spacy")

# A document longer than this comes in several parts, cut between paragraphs.
PART_CHARACTERS = 100_000


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


def read_parts(path: Path) -> Iterator[Part]:
    """The documents of one file. What cannot be read is a `CorpusError` naming file and line."""
    readers = {".txt": _read_text, ".jsonl": _read_jsonl, ".spacy": _read_spacy}
    try:
        yield from readers[path.suffix](path)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_text(path: Path) -> Iterator[Part]:
    """One paragraph per line, a blank line between documents."""
    paragraphs: list[str] = []
    size = 0
    for _, line in read_lines(path):
        line = line.strip()
        if line:
            paragraphs.append(line)
            size += len(line)
            if size > PART_CHARACTERS:
                yield Part("\n".join(paragraphs), ends=False)
                paragraphs, size = [""], 0  # the next part goes on in a new line
        else:
            yield Part("\n".join(paragraphs), ends=True)
            paragraphs, size = [], 0
    yield Part("\n".join(paragraphs), ends=True)


def _read_jsonl(path: Path) -> Iterator[Part]:
    """One document per line: {"text": "..."}; other keys are ignored."""
    for text in read_jsonl(path):
        yield Part(text, ends=True)


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
        yield Part(doc.text, ends=True)
