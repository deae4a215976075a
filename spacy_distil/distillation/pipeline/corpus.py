"""The documents of a teaching run, and a reader of text without annotation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
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

from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.text.docs import same_tokens
from spacy_distil.text.plain_text import find_files, read_parts

Reader = Callable[[Language], Iterable[Example]]

_ENDS = frozenset(Sentencizer.default_punct_chars)
_ANNOTATION = [TAG, POS, MORPH, LEMMA, HEAD, DEP, SENT_START, ENT_IOB, ENT_TYPE]


@dataclass(frozen=True)
class TransferExample:
    """A document to learn from, with its number in the teacher's records."""

    number: int
    example: Example

    def __len__(self) -> int:
        """Tokens, which is what spaCy's batchers count."""
        return len(self.example.predicted)

    # As of an Example, which custom batchers may look at.

    @property
    def predicted(self) -> Doc:
        return self.example.predicted

    @property
    def reference(self) -> Doc:
        return self.example.reference

    x, y = predicted, reference


@dataclass(frozen=True)
class TransferSet:
    """All documents of a run: first those with annotation, then text without.

    n_gold: how many of them have annotation.
    """

    all: list[TransferExample]
    n_gold: int

    @property
    def gold(self) -> list[TransferExample]:
        return self.all[: self.n_gold]

    @property
    def docs(self) -> list[Doc]:
        return [lesson.predicted for lesson in self.all]

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.all))


def read_transfer_set(nlp: Language, train: Reader, text: Reader | None) -> TransferSet:
    """Read the training corpus and, where there is one, the text without annotation.

    nlp: the student, which tokenizes.
    """
    gold = list(train(nlp))
    if not gold:
        raise CorpusError("The training corpus has no documents in it: look at [paths] train.")
    unlabelled = list(text(nlp)) if text is not None else []
    if text is not None and not unlabelled:
        raise CorpusError(
            "The corpus of [distillation] has no documents in it. Give other files, or set corpus "
            "to null to teach on the training corpus alone."
        )
    examples = gold + unlabelled
    return TransferSet(
        [TransferExample(i, example) for i, example in enumerate(examples)], len(gold)
    )


def fingerprint_annotation(examples: Iterable[Example]) -> str:
    """Of the gold annotation, and of the texts."""
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


def Texts(path: str | list[str] | None, max_words: int = 200, limit: int = 0) -> Reader:
    """Reader `spacy-distil.Texts.v1`: documents without annotation.

    path: files or directories, of .txt (one paragraph per line, a blank line between documents),
        .jsonl (one document per line, {"text": "..."}) or .spacy, whose annotation is left out.
    max_words: tokens of a document; longer ones are cut, between sentences where these can be told
        by their punctuation.
    limit: the first so many documents only; 0 for all.
    """
    if max_words < 1 or limit < 0:
        raise ConfigError(
            f"max_words = {max_words}, limit = {limit}: expected at least 1, and 0 or more."
        )

    def read(nlp: Language) -> Iterator[Example]:
        if path is None:
            raise ConfigError(
                "The text to teach on has no path. Give one, such as --paths.text texts/, or set "
                "corpus = null in [distillation] to teach on the training corpus alone."
            )
        paths = [path] if isinstance(path, str) else path
        count = 0
        for file in find_files(paths, setting="The text to teach on"):
            for part in read_parts(file):
                for doc in cut(nlp.make_doc(part.text), max_words):
                    if not any(not token.is_space for token in doc):
                        continue
                    yield Example(doc, same_tokens(doc, doc.vocab))
                    count += 1
                    if count == limit:
                        return

    return read


def cut(doc: Doc, max_words: int) -> Iterator[Doc]:
    """The document in pieces of at most `max_words` tokens, whole sentences where possible.

    A piece ends after the last token with which a sentence seems to end, in its second half.
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
