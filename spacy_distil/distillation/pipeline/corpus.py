"""The documents of a pipeline distillation, and a reader of text without annotation."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from confection import Config
from spacy.attrs import (  # type: ignore[import-not-found]
    DEP,
    ENT_IOB,
    ENT_TYPE,
    HEAD,
    LEMMA,
    MORPH,
    POS,
    SENT_START,
    TAG,
)
from spacy.language import Language
from spacy.pipeline import Sentencizer
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import resolve_dot_names
from wasabi import msg

from spacy_distil.errors import ConfigError, CorpusError, DistilError
from spacy_distil.pipelines import one_line
from spacy_distil.text.docs import same_tokens
from spacy_distil.text.plain_text import TxtDocuments, TxtFiles, find_files, read_parts

if TYPE_CHECKING:
    from spacy_distil.distillation.pipeline.config import PipelineDistilConfig

Reader = Callable[[Language], Iterable[Example]]

TEXTS = "spacy-distil.Texts.v1"
MAX_HELD_OUT = 1000
_CORPORA = {"train": "training", "dev": "development"}
_VARIABLE = re.compile(r"\$\{([\w.:]+)\}")
_ENDS = frozenset(Sentencizer.default_punct_chars)
_ANNOTATION = [TAG, POS, MORPH, LEMMA, HEAD, DEP, SENT_START, ENT_IOB, ENT_TYPE]


@dataclass(frozen=True)
class TransferExample:
    """A document to learn from, with its number in the teacher's records."""

    number: int
    example: Example

    def __len__(self) -> int:
        """The number of tokens, which spaCy's batchers count."""
        return len(self.example.predicted)

    # The sides of an Example, because a custom batcher may read them.

    @property
    def predicted(self) -> Doc:
        return self.example.predicted

    @property
    def reference(self) -> Doc:
        return self.example.reference

    x, y = predicted, reference


@dataclass(frozen=True)
class TransferSet:
    """All documents of a run: first the annotated ones, then text without annotation.

    n_gold: number of annotated documents.
    held_out: documents without annotation that nobody learns from, for scores.
    """

    all: list[TransferExample]
    n_gold: int
    held_out: list[Doc] = field(default_factory=list)

    @property
    def gold(self) -> list[TransferExample]:
        return self.all[: self.n_gold]

    @property
    def n_text(self) -> int:
        """Number of documents without annotation."""
        return len(self.all) - self.n_gold

    @property
    def docs(self) -> list[Doc]:
        return [example.predicted for example in self.all]

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.all))


def check_paths(config: Config, *, corpus: str | None = None) -> None:
    """Raise ConfigError if the training or the development corpus of a student has no path.

    config: the student's, not interpolated.
    corpus: name of the corpus of text without annotation. If it has a path, both may be missing.
    """
    missing = _missing_paths(config)
    text = _find_block(config.interpolate(), corpus)
    has_text = corpus and not (text.get("@readers") == TEXTS and text.get("path") is None)
    if missing and not has_text:
        names = " and ".join(f"the {_CORPORA[name]} corpus" for name in missing)
        options = " ".join(f"--{option} {name}.spacy" for name, option in missing.items())
        raise ConfigError(
            f"There is no path to {names}: give a .spacy file or a directory of them, such as "
            f"{options}. Or give text for the teacher to annotate, such as --paths.text texts/"
        )


def _missing_paths(config: Config) -> dict[str, str]:
    """Return the corpora of annotated documents without a path, with the option that sets it."""
    training = config.interpolate().get("training", {})
    missing = {}
    for name in _CORPORA:
        corpus = training.get(f"{name}_corpus", f"corpora.{name}")
        block, values = (_find_block(each, corpus) for each in (config, config.interpolate()))
        if values.get("@readers") == "spacy.Corpus.v1" and values.get("path") is None:
            variable = _VARIABLE.fullmatch(str(block.get("path")))
            missing[name] = variable[1].replace(":", ".") if variable else f"{corpus}.path"
    return missing


def _find_block(config: Mapping[str, Any], name: Any) -> Mapping[str, Any]:
    """Return the block with a dotted name, or an empty one if there is none."""
    block: Any = config
    for key in str(name).split("."):
        block = block.get(key) if isinstance(block, Mapping) else None
    return block if isinstance(block, Mapping) else {}


def resolve_corpora(
    nlp: Language, settings: PipelineDistilConfig
) -> tuple[Reader | None, Reader | None, Reader | None]:
    """Make the readers of the training, the development and the unlabelled documents.

    nlp: the student. Its config has the corpora.
    RETURNS: None for each that the config does not have.
    """
    missing = _missing_paths(nlp.config)
    config = nlp.config.interpolate()
    names = {name: config["training"][f"{name}_corpus"] for name in _CORPORA}
    for name in missing:
        section, _, key = names.pop(name).rpartition(".")
        del _find_block(config, section)[key]  # type: ignore[attr-defined]
    if settings.corpus is not None:
        names["text"] = settings.corpus
    readers = dict(zip(names, resolve_dot_names(config, list(names.values())), strict=True))
    return readers.get("train"), readers.get("dev"), readers.get("text")


def read_annotated(nlp: Language, reader: Reader, *, which: str, path: str) -> list[Example]:
    """Read the training or the development corpus.

    nlp: the student. It tokenizes the documents.
    which, path: the name of the corpus, and of its setting in [paths], for errors.
    Raises CorpusError if the corpus cannot be read, or is empty.
    """
    look = f"look at [paths] {path}."
    try:
        examples = list(reader(nlp))
    except DistilError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile, zlib.error) as error:
        raise CorpusError(
            f"The {which} corpus cannot be read: {one_line(str(error)).rstrip('.')}: {look}"
        ) from error
    if not examples:
        raise CorpusError(f"The {which} corpus has no documents in it: {look}")
    return examples


def read_transfer_set(
    nlp: Language, train: Reader | None, text: Reader | None, *, held_out: int = 0
) -> TransferSet:
    """Read the training corpus and the text without annotation, as far as there are any.

    nlp: the student. It tokenizes the documents.
    held_out: one of so many documents without annotation is held out, MAX_HELD_OUT at most, and so
        are all others of the same text. 0 holds out none.
    """
    gold = [] if train is None else read_annotated(nlp, train, which="training", path="train")
    unlabelled = list(text(nlp)) if text is not None else []
    if text is not None and not unlabelled:
        raise CorpusError(
            "The corpus of [distillation] has no documents in it. Give other files, or set corpus "
            "to null to learn from the training corpus alone."
        )
    development: list[Doc] = []
    if held_out:
        n = min(MAX_HELD_OUT, max(1, len(unlabelled) // held_out))
        places = range(0, n * (len(unlabelled) // n), len(unlabelled) // n)
        development = [unlabelled[place].predicted for place in places]
        texts = {doc.text for doc in development}
        unlabelled = [each for each in unlabelled if each.predicted.text not in texts]
        if not gold and not unlabelled:
            raise CorpusError(
                "The corpus of [distillation] has no second document: one is held out for the "
                "scores, and none is left to learn from. Give more text, or annotated documents in "
                "[paths] dev."
            )
    examples = gold + unlabelled
    return TransferSet(
        [TransferExample(i, example) for i, example in enumerate(examples)], len(gold), development
    )


def fingerprint_annotation(examples: Iterable[Example]) -> str:
    """Return a digest of texts and their gold annotation."""
    digest = hashlib.blake2b(digest_size=12)
    for example in examples:
        doc = example.reference
        digest.update(doc.text.encode())
        digest.update(np.ascontiguousarray(doc.to_array(_ANNOTATION)).tobytes())
        spans = {
            key: [(span.start, span.end, span.label_, span.id_) for span in group]
            for key, group in doc.spans.items()
        }
        cats = {label: float(value) for label, value in doc.cats.items()}
        links = [(ent.start, ent.kb_id_, ent.ent_id_) for ent in doc.ents]
        digest.update(json.dumps([cats, spans, links], sort_keys=True).encode())
    return digest.hexdigest()


def Texts(
    path: str | list[str] | None,
    max_words: int = 200,
    limit: int = 0,
    txt_documents: TxtDocuments = "auto",
) -> Reader:
    """Reader `spacy-distil.Texts.v1`: documents without annotation.

    path: files or directories, of .txt, .jsonl (one document per line, {"text": "..."}) or .spacy,
        whose annotation is dropped.
    max_words: greatest number of tokens in a document. Longer documents are cut, between sentences
        if their punctuation shows where these end.
    limit: number of documents to read. 0 means all.
    txt_documents: how .txt files are divided into documents, see `TxtDocuments`.
    """
    if max_words < 1 or limit < 0:
        raise ConfigError(
            f"max_words = {max_words}, limit = {limit}: expected at least 1, and 0 or more."
        )
    TxtFiles(txt_documents)  # raises an error for any other word

    def read(nlp: Language) -> Iterator[Example]:
        if path is None:
            raise ConfigError(
                "The unlabelled text has no path. Give one, such as --paths.text texts/, or set "
                "corpus = null in [distillation] to learn from the training corpus alone."
            )
        paths = [path] if isinstance(path, str) else path
        txt = TxtFiles(txt_documents)
        files = find_files(paths, setting="The unlabelled text")
        parts = chain.from_iterable(read_parts(file, txt) for file in files)
        docs = (doc for part in parts for doc in split_doc(nlp.make_doc(part.text), max_words))
        with_text = (doc for doc in docs if not all(token.is_space for token in doc))
        for doc in islice(with_text, limit or None):
            yield Example(doc, same_tokens(doc, doc.vocab))
        txt.tell(msg.info)

    return read


def split_doc(doc: Doc, max_words: int) -> Iterator[Doc]:
    """Cut a document into parts of at most `max_words` tokens, between sentences if possible.

    A part ends after the last token in its second half that seems to end a sentence.
    """
    start = 0
    while len(doc) - start > max_words:
        end = start + max_words
        for i in range(end, start + (max_words + 1) // 2, -1):
            if doc[i - 1].text in _ENDS or "\n" in doc[i - 1].text:
                end = i
                break
        yield doc[start:end].as_doc()
        start = end
    yield doc[start:].as_doc() if start else doc
