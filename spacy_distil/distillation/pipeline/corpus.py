"""The documents of a pipeline distillation, and a reader of text without annotation."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path
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
from spacy_distil.text.docs import further_texts, same_tokens
from spacy_distil.text.languages import check_language
from spacy_distil.text.plain_text import (
    PART_CHARACTERS,
    TxtDocuments,
    TxtFiles,
    file_size,
    find_files,
    read_parts,
)

if TYPE_CHECKING:
    from spacy_distil.distillation.pipeline.config import PipelineDistilConfig

Reader = Callable[[Language], Iterable[Example]]

TEXTS = "spacy-distil.Texts.v1"
MAX_HELD_OUT = 1000
_CORPORA = {"train": "training", "dev": "development"}
_VARIABLE = re.compile(r"\$\{([\w.:]+)\}")
_ENDS = frozenset(Sentencizer.default_punct_chars)
# Keys of the user data of a doc: the text that it is a translation of, and its language.
_ORIGINAL, _LANGUAGE = "spacy_distil.original", "spacy_distil.language"
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


def original_of(doc: Doc) -> str | None:
    """Return the text that a doc is a translation of, or None if it is none."""
    original: str | None = doc.user_data.get(_ORIGINAL)
    return original


def language_of(doc: Doc) -> str | None:
    """Return the code of the language that the settings give for the file of a doc, or None."""
    lang: str | None = doc.user_data.get(_LANGUAGE)
    return lang


def by_language(docs: Iterable[Doc], default: str) -> dict[str, list[Doc]]:
    """Group docs by their language.

    default: the language of docs whose files have none in the settings.
    """
    groups: dict[str, list[Doc]] = defaultdict(list)
    for doc in docs:
        groups[language_of(doc) or default].append(doc)
    return dict(groups)


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


# Readers of annotated documents that a config may leave without a path.
_READERS = (
    "spacy.Corpus.v1",
    "spacy-distil.Pairs.v1",
    "spacy-distil.LabelledPairs.v1",
    "spacy-distil.Squad.v1",
)


def _missing_paths(config: Config) -> dict[str, str]:
    """Return the corpora of annotated documents without a path, with the option that sets it."""
    training = config.interpolate().get("training", {})
    missing = {}
    for name in _CORPORA:
        corpus = training.get(f"{name}_corpus", f"corpora.{name}")
        block, values = (_find_block(each, corpus) for each in (config, config.interpolate()))
        if values.get("@readers") in _READERS and values.get("path") is None:
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
    for example in examples:  # spaCy's reader makes the predicted docs of the text alone
        example.predicted.user_data.update(further_texts(example.reference))
    return examples


def read_transfer_set(
    nlp: Language, train: Reader | None, text: Reader | None, *, held_out: int = 0
) -> TransferSet:
    """Read the training corpus and the text without annotation, as far as there are any.

    nlp: the student. It tokenizes the documents.
    held_out: one of so many documents without annotation is held out, MAX_HELD_OUT at most, and so
        are all others of the same text or original. 0 holds out none.
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
        texts = set().union(*map(_texts, development))
        unlabelled = [each for each in unlabelled if not texts & _texts(each.predicted)]
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


def _texts(doc: Doc) -> set[str]:
    """Return the text of a doc, and its original."""
    return {doc.text, original_of(doc) or doc.text}


def fingerprint_annotation(examples: Iterable[Example]) -> str:
    """Return a digest of texts, their originals, and their gold annotation."""
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
        if texts := further_texts(doc):
            digest.update(json.dumps(texts, sort_keys=True).encode())
        if (original := original_of(example.predicted)) is not None:
            digest.update(json.dumps(original).encode())
    return digest.hexdigest()


def Texts(
    path: str | list[str] | dict[str, str | list[str]] | None,
    max_words: int = 200,
    limit: int = 0,
    alpha: float = 0.5,
    txt_documents: TxtDocuments = "auto",
) -> Reader:
    """Reader `spacy-distil.Texts.v1`: documents without annotation.

    path: files or directories, of .txt, .jsonl (one document per line, {"text": "..."}) or .spacy,
        whose annotation is dropped. Or these by the code of their language.
    max_words: greatest number of tokens in a document. Longer documents are cut, between sentences
        if their punctuation shows where these end. Translations with an original are not cut.
    limit: number of documents to read. 0 means all.
    alpha: with `limit` and languages, a language whose files have n bytes has a share of n ** alpha
        of the documents, as in XLM (Conneau and Lample 2019). If a language has fewer, the others
        have more. 1: as much of each as there is; 0: all languages alike.
    txt_documents: how .txt files are divided into documents, see `TxtDocuments`.
    """
    if max_words < 1 or limit < 0:
        raise ConfigError(
            f"max_words = {max_words}, limit = {limit}: expected at least 1, and 0 or more."
        )
    if not 0 <= alpha <= 1:
        raise ConfigError(
            f"alpha = {alpha}: expected a number from 0 (all languages alike) to 1 (as much of "
            "each as there is)."
        )
    TxtFiles(txt_documents)  # raises an error for any other word
    languages: dict[str, list[str]] = {}
    if isinstance(path, dict):
        languages = {check_language(lang): _as_list(each) for lang, each in path.items()}

    def read(nlp: Language) -> Iterator[Example]:
        if not path:
            raise ConfigError(
                "The unlabelled text has no path. Give one, such as --paths.text texts/, or set "
                "corpus = null in [distillation] to learn from the training corpus alone."
            )
        txt = TxtFiles(txt_documents)
        if isinstance(path, dict):
            files = {
                lang: find_files(each, setting=f"The unlabelled text ({lang})")
                for lang, each in languages.items()
            }
            docs = {lang: _with_language(_docs(nlp, files[lang], txt), lang) for lang in files}
            sizes = {lang: sum(map(file_size, files[lang])) for lang in files}
            chosen = _share(docs, sizes, alpha, limit) if limit else chain(*docs.values())
        else:
            found = find_files(_as_list(path), setting="The unlabelled text")
            chosen = islice(_docs(nlp, found, txt), limit or None)
        for doc in chosen:
            yield Example(doc, same_tokens(doc, doc.vocab))
        txt.tell(msg.info)

    def _docs(nlp: Language, files: Sequence[Path], txt: TxtFiles) -> Iterator[Doc]:
        for file in files:
            for part in read_parts(file, txt, original=True):
                doc = nlp.make_doc(part.text)
                if part.original is None:
                    docs = split_doc(doc, max_words)
                elif part.ends:
                    doc.user_data[_ORIGINAL] = part.original
                    docs = iter([doc])
                else:
                    raise CorpusError(
                        f'{file}: a document with an "original" has more than '
                        f"{PART_CHARACTERS:,} characters. Cut both into sentences or paragraphs."
                    )
                yield from (each for each in docs if not all(token.is_space for token in each))

    return read


def _as_list(path: str | list[str]) -> list[str]:
    return [path] if isinstance(path, str) else path


def _with_language(docs: Iterable[Doc], lang: str) -> Iterator[Doc]:
    for doc in docs:
        doc.user_data[_LANGUAGE] = lang
        yield doc


def _share(
    docs: Mapping[str, Iterator[Doc]], sizes: Mapping[str, int], alpha: float, limit: int
) -> Iterator[Doc]:
    """Yield the first documents of each language, `limit` in all.

    docs, sizes: by language. A language has a share of size ** alpha, and what it lacks is shared
        among the others.
    """
    weights = {lang: size**alpha for lang, size in sizes.items() if size}
    while limit and weights:
        total = sum(weights.values())
        # Rounded sums, so that the numbers add up to the limit.
        sums = [round(limit * each / total) for each in accumulate(weights.values())]
        taken = 0
        for lang, (start, stop) in zip([*weights], pairwise([0, *sums]), strict=True):
            found = 0
            for doc in islice(docs[lang], stop - start):
                found += 1
                yield doc
            taken += found
            if found < stop - start:
                del weights[lang]
        limit -= taken


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
