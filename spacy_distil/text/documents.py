"""Documents from files: `.spacy` with their annotations, `.txt` and `.jsonl` as text.

`distillation/reading.py` reads the same formats for training on corpora of any size.
"""

from __future__ import annotations

import importlib
import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spacy_distil.errors import ConfigError, CorpusError

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc
    from spacy.training import Example


@dataclass(frozen=True)
class Documents:
    """Documents to run pipelines over.

    docs: tokenized by the pipeline that they were read for, without annotations.
    gold: what they are annotated with, in the same order; `None` of plain text.
    """

    docs: list[Doc]
    gold: list[Example] | None

    @property
    def texts(self) -> list[str]:
        """The text of each document."""
        return [doc.text for doc in self.docs]


def read_documents(path: Path, nlp: Language, *, limit: int = 0) -> Documents:
    """The documents of a file, tokenized by `nlp`.

    path: .spacy (or a directory of them), .txt with one text per line, or .jsonl with
        {"text": "..."} in each line. Empty texts are left out.
    limit: the first N documents; 0 for all.
    """
    if limit < 0:
        raise ConfigError(f"limit = {limit}: expected 0, for all documents, or more.")
    if path.is_dir() or path.suffix not in (".txt", ".jsonl"):
        examples = read_examples(nlp, path, limit=limit)
        return Documents([example.predicted for example in examples], examples)
    if not path.is_file():
        raise CorpusError(f"No documents at {path} (looked from {Path.cwd()}).")
    docs = []
    for text in read_jsonl(path) if path.suffix == ".jsonl" else _texts(path):
        if text.strip():
            docs.append(nlp.make_doc(text))
        if limit and len(docs) == limit:
            break
    if not docs:
        raise CorpusError(f"{path} has no text in it; one document is needed at least.")
    return Documents(docs, None)


def example_documents(nlp: Language) -> Documents:
    """A few sentences that come with spaCy, in the pipeline's language or else in English."""
    for language in (nlp.lang, "en"):
        try:
            examples = importlib.import_module(f"spacy.lang.{language}.examples")
        except ModuleNotFoundError:
            continue
        return Documents([nlp.make_doc(text) for text in examples.sentences], None)
    raise CorpusError("spaCy has no example sentences. Name documents to check on.")


def check_test_set(path: Path) -> None:
    """Raise CorpusError where there are no annotated documents at `path`."""
    if not path.exists():
        raise CorpusError(
            f"No test documents at {path}. Expected a .spacy file, or a directory of them."
        )
    if path.is_file() and path.suffix != ".spacy":
        raise CorpusError(
            f"Cannot read {path}: expected a .spacy file, as `python -m spacy convert` writes it."
        )


def read_examples(nlp: Language, path: Path, *, limit: int = 0) -> list[Example]:
    """The documents at `path` as `python -m spacy evaluate` reads them.

    path: a .spacy file, or a directory of them.
    limit: the first N documents; 0 for all.
    """
    from spacy.training import Corpus

    check_test_set(path)
    try:
        examples = list(Corpus(path, limit=limit)(nlp))
    except (ValueError, EOFError, KeyError, TypeError, zlib.error, zipfile.BadZipFile) as error:
        raise CorpusError(f"Cannot read {path} as .spacy: {error}. Write it anew.") from error
    if not examples:
        raise CorpusError(f"{path} has no documents with tokens in it; one is needed at least.")
    return examples


def read_jsonl(path: Path) -> Iterator[str]:
    """The text of each line: {"text": "..."}; other keys, and empty lines, are ignored."""
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
        yield text


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, a byte order mark dropped."""
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


def _texts(path: Path) -> Iterator[str]:
    for _, line in read_lines(path):
        yield line.rstrip("\r\n")
