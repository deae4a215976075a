"""Read documents to run pipelines over: `.spacy` with annotations, `.txt` and `.jsonl` as text."""

from __future__ import annotations

import importlib
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.text.plain_text import TxtDocuments, TxtFiles, read_texts

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc
    from spacy.training import Example


@dataclass(frozen=True)
class Documents:
    """Documents to run pipelines over.

    docs: tokenized by the pipeline that they were read for, without annotations.
    gold: the annotated documents, in the same order; None for plain text.
    """

    docs: list[Doc]
    gold: list[Example] | None

    @property
    def texts(self) -> list[str]:
        """The text of each document."""
        return [doc.text for doc in self.docs]


def read_documents(
    path: Path,
    nlp: Language,
    *,
    limit: int = 0,
    txt_documents: TxtDocuments = "auto",
    log: Callable[[str], object] = lambda message: None,
) -> Documents:
    """Read the documents of a file, tokenized by `nlp`.

    path: .spacy (or a directory of them), .txt, or .jsonl with {"text": "..."} in each line. Empty
        texts are left out.
    limit: read the first N documents only; 0 for all.
    txt_documents: how a .txt file is divided.
    log: is told how it was.
    """
    if limit < 0:
        raise ConfigError(f"limit = {limit}: expected 0, for all documents, or more.")
    if path.is_dir() or path.suffix not in (".txt", ".jsonl"):
        examples = read_examples(nlp, path, limit=limit)
        return Documents([example.predicted for example in examples], examples)
    if not path.is_file():
        raise CorpusError(f"No documents at {path} (looked from {Path.cwd()}).")
    docs = []
    txt = TxtFiles(txt_documents)
    for text in read_texts(path, txt):
        if text.strip():
            docs.append(nlp.make_doc(text))
        if limit and len(docs) == limit:
            break
    if not docs:
        raise CorpusError(f"{path} has no text in it. At least one document is needed.")
    txt.tell(log)
    return Documents(docs, None)


def example_documents(nlp: Language) -> Documents:
    """Read spaCy's example sentences in the pipeline's language, or the English ones."""
    for language in (nlp.lang, "en"):
        try:
            examples = importlib.import_module(f"spacy.lang.{language}.examples")
        except ModuleNotFoundError:
            continue
        return Documents([nlp.make_doc(text) for text in examples.sentences], None)
    raise CorpusError("spaCy has no example sentences. Name documents to check on.")


def check_test_set(path: Path) -> None:
    """Raise CorpusError if there are no annotated documents at `path`."""
    if not path.exists():
        raise CorpusError(
            f"No documents at {path}. Expected a .spacy file, or a directory of them."
        )
    if path.is_file() and path.suffix != ".spacy":
        raise CorpusError(
            f"Cannot read {path}: expected a .spacy file, as `python -m spacy convert` writes it."
        )


def read_examples(nlp: Language, path: Path, *, limit: int = 0) -> list[Example]:
    """Read the documents at `path` as `python -m spacy evaluate` does.

    path: a .spacy file, or a directory of them.
    limit: read the first N documents only; 0 for all.
    """
    from spacy.training import Corpus

    from spacy_distil.text.docs import further_texts

    check_test_set(path)
    try:
        examples = list(Corpus(path, limit=limit)(nlp))
    except (ValueError, EOFError, KeyError, TypeError, zlib.error, zipfile.BadZipFile) as error:
        reason = str(error).rstrip(".")
        raise CorpusError(f"Cannot read {path} as .spacy: {reason}. Write it again.") from error
    if not examples:
        raise CorpusError(f"{path} has no documents with tokens in it. At least one is needed.")
    for example in examples:  # spaCy's reader makes the predicted docs of the text alone
        example.predicted.user_data.update(further_texts(example.reference))
    return examples
