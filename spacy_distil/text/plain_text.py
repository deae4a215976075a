"""Read text of any size: `.txt`, `.jsonl` and `.spacy`.

In a `.jsonl` file each line is a document. A `.txt` file has a document per line, or blank lines
between documents, see `TxtFiles`. Everything that reads text reads it here, so a file has the same
documents for every command.

The memory that this takes is one part of a document for `.txt`, one line for `.jsonl`, and the
whole file for `.spacy`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from wasabi import msg

from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.text.readers import cut_text, read_jsonl, read_paragraphs

SUFFIXES = (".txt", ".jsonl", ".spacy")
# How a `.txt` file is divided into documents: "lines": each line is one; "blank_lines": they stand
# between documents, and each line is a paragraph; "auto": by blank lines if the file has any, and
# by lines otherwise.
TxtDocuments = Literal["auto", "lines", "blank_lines"]

# Documents of more lines, on average, are doubtful if nobody has asked for blank lines.
MANY_LINES = 200
# A document longer than this comes in several parts, cut between paragraphs or words if it has
# any. No part is longer than three times this.
PART_CHARACTERS = 100_000
# Halves of characters, which JSON can spell and UTF-8 cannot.
SURROGATES = re.compile("[\ud800-\udfff]")


class Part(NamedTuple):
    """A document, or a part of a long one.

    text: its text.
    ends: whether the document ends with it.
    original: the text that the document is a translation of, if that is asked for and known.
    """

    text: str
    ends: bool
    original: str | None = None


@dataclass
class _Count:
    """Numbers of files, documents, and lines with text in them."""

    paths: list[Path] = field(default_factory=list)
    documents: int = 0
    lines: int = 0

    @property
    def is_doubtful(self) -> bool:
        """Whether few blank lines divide many lines, as if they stood there by mistake."""
        return self.lines > MANY_LINES * self.documents


class TxtFiles:
    """Decides how `.txt` files are divided into documents, and counts what is read of them.

    documents: see `TxtDocuments`.
    """

    def __init__(self, documents: TxtDocuments = "auto") -> None:
        if documents not in get_args(TxtDocuments):
            expected = ", ".join(get_args(TxtDocuments))
            raise ConfigError(f"txt_documents = {documents!r}: expected one of {expected}.")
        self.documents = documents
        self._counts = {"lines": _Count(), "blank_lines": _Count()}

    def read(self, path: Path) -> Iterator[Part]:
        """Yield the documents of a `.txt` file in parts."""
        rule = self.documents
        if rule == "auto":
            rule = "blank_lines" if _has_blank_lines(path) else "lines"
        count = self._counts[rule]
        count.paths.append(path)
        texts: list[str] = []
        size = 0
        has_text = False  # of the document so far
        for text, starts_line in read_paragraphs(path, PART_CHARACTERS):
            if starts_line and has_text and (rule == "lines" or not text):
                count.documents += 1
                yield Part("".join(texts), ends=True)
                texts, size, has_text = [], 0, False
            if starts_line and not text:
                continue
            count.lines += starts_line
            texts.append(f"\n{text}" if starts_line and has_text else text)
            size += len(text)
            has_text = True
            if size > PART_CHARACTERS:
                yield Part("".join(texts), ends=False)
                texts, size = [], 0
        if has_text:
            count.documents += 1
            yield Part("".join(texts), ends=True)

    def tell(self, log: Callable[[str], object]) -> None:
        """Say how the files were divided, with the numbers of what has been read of them, and in
        yellow if that may be wrong.
        """
        for rule, how in (("lines", "each line is one"), ("blank_lines", "divided by blank lines")):
            count = self._counts[rule]
            if count.paths:
                n = len(count.paths)
                where = str(count.paths[0]) if n == 1 else f"{n:,} .txt files"
                log(
                    f"{where}: {_number(count.documents, 'document')}, {how} "
                    f"({_number(count.lines, 'line')} with text; "
                    f'txt_documents = "{self.documents}")'
                )
            if rule == "blank_lines" and self.documents == "auto" and count.is_doubtful:
                msg.warn(
                    f"{where}: few blank lines for so many lines. If each line is a document, set "
                    'txt_documents = "lines"'
                )


def _number(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _has_blank_lines(path: Path) -> bool:
    """Whether there is a blank line between two lines with text."""
    has_text = is_blank = False
    for text, starts_line in read_paragraphs(path, PART_CHARACTERS):
        if starts_line and not text:
            is_blank = has_text
        elif is_blank:
            return True
        else:
            has_text = True
    return False


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


def read_parts(
    path: Path, txt: TxtFiles | None = None, *, original: bool = False
) -> Iterator[Part]:
    """Yield the documents of one file in parts. A CorpusError names the file and the line.

    txt: for `.txt` files. `None` divides them as "auto" does.
    original: read the originals of translations, which `.jsonl` files may have.
    """
    readers: dict[str, Callable[[Path], Iterator[Part]]] = {
        ".txt": (txt or TxtFiles()).read,
        ".jsonl": partial(_read_jsonl, original=original),
        ".spacy": _read_spacy,
    }
    try:
        yield from readers[path.suffix](path)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error


def read_texts(path: Path, txt: TxtFiles | None = None) -> Iterator[str]:
    """Yield the documents of one file, each as one text. See `read_parts`."""
    texts: list[str] = []
    for part in read_parts(path, txt):
        texts.append(part.text)
        if part.ends:
            yield "".join(texts)
            texts = []


def _read_jsonl(path: Path, *, original: bool) -> Iterator[Part]:
    """Read one document per line, with a replacement character for each half of a character."""
    for text, source in read_jsonl(path, original):
        yield from _to_parts(_whole(text), source and _whole(source))


def _whole(text: str) -> str:
    return SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


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


def _to_parts(text: str, original: str | None = None) -> Iterator[Part]:
    """Cut a whole document."""
    *pieces, last = cut_text(text, PART_CHARACTERS)
    yield from (Part(piece, False, original) for piece in pieces)
    yield Part(last, True, original)
