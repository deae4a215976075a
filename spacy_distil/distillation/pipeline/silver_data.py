"""Silver data: a pipeline's annotation of texts, in files that `spacy train` reads.

The documents are annotated part by part. A part is complete or absent, so a killed command goes on
after the parts that it has written. `silver.json` beside them says what they are.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from spacy.cli._util import setup_gpu
from spacy.language import Language
from spacy.pipeline import MultiLabel_TextCategorizer, TextCategorizer
from spacy.tokens import Doc, DocBin
from spacy.tokens._serialize import ALL_ATTRS
from thinc.api import Model
from wasabi import msg

from spacy_distil.distillation.pipeline.calls import TeacherCalls, TeacherSettings
from spacy_distil.distillation.pipeline.corpus import split_doc
from spacy_distil.distillation.pipeline.fingerprints import fingerprint_docs, fingerprint_pipeline
from spacy_distil.distillation.pipeline.heads.annotation import (
    LIKELY,
    Entities,
    check_probability,
    declares,
)
from spacy_distil.distillation.pipeline.labels import is_encoder
from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.hugging_face import is_hugging_face, load_teacher
from spacy_distil.runs.digests import digest_file
from spacy_distil.runs.files import atomic_file, write_text
from spacy_distil.runs.outputs import check_file, check_writable
from spacy_distil.runs.settings import read_section
from spacy_distil.softmax import is_softmax, log_probabilities
from spacy_distil.text.plain_text import TxtDocuments, TxtFiles, find_files, read_parts

STATE = "silver.json"
FORMAT = "spacy-distil silver data"
PART = "silver-*.spacy"
PART_DOCS = 500  # of an output that is one file
BATCH_DOCS = 256
# A doc that is parsed gets its sentences from the heads, and any other from this attribute.
ATTRIBUTES = (*ALL_ATTRS, "SENT_START")


@dataclass(frozen=True)
class SilverData:
    """The files that `annotate_texts` has written.

    documents, words: in the files.
    left_out: number of documents whose confidence is too low.
    annotated: number of documents that the pipeline has annotated in this call.
    """

    path: Path
    documents: int
    words: int
    left_out: int
    annotated: int


def annotate_texts(
    pipeline: Language | str | Path,
    paths: Sequence[str | Path],
    output: Path,
    *,
    shard_docs: int = 0,
    min_confidence: float | None = None,
    exclusive_cats: bool = False,
    limit: int = 0,
    max_words: int = 0,
    batch_size: int | None = None,
    rate_limit: float | None = None,
    retries: int = 0,
    txt_documents: TxtDocuments = "auto",
    lang: str | None = None,
    gpu_id: int = -1,
    force: bool = False,
    log: Callable[[str], object] = lambda message: None,
) -> SilverData:
    """Run a pipeline over texts, and write its annotation.

    pipeline: a pipeline, or its directory or package. Or a fine-tuned model of transformers.
    paths: files or directories of text: .txt, .jsonl and .spacy, whose annotation is not read.
        Documents without text are left out.
    output: a .spacy file, or with `shard_docs` a directory.
    shard_docs: documents in each file of the directory. 0 writes one file.
    min_confidence: leaves out documents with a pipe that is less sure, see `_Confidence`.
    exclusive_cats: whether the categories of components other than spaCy's exclude each other.
    limit: number of documents to annotate. 0 means all.
    max_words: greatest number of tokens in a document. Longer ones are cut. 0 means no limit.
    batch_size, rate_limit, retries: see `TeacherSettings`. The batch size is BATCH_DOCS if there is
        no rate limit.
    txt_documents: see `TxtDocuments`.
    lang: code of the language, for a model of transformers.
    gpu_id: GPU for the layers of spaCy, or -1 for the CPU.
    force: replace silver data of another pipeline, other texts or other settings.
    log: is told how the work goes on.
    Raises ConfigError for settings and files that cannot work, and TeacherError if a component
    fails.
    """
    if min(shard_docs, limit, max_words) < 0:
        raise ConfigError(
            f"shard_docs = {shard_docs}, limit = {limit}, max_words = {max_words}: expected 0 or "
            "more."
        )
    if min_confidence is not None and not 0 <= min_confidence <= 1:
        raise ConfigError(f"min_confidence = {min_confidence}: expected a number from 0 to 1.")
    if batch_size is None and rate_limit is None:
        batch_size = BATCH_DOCS
    values = {"batch_size": batch_size, "rate_limit": rate_limit, "retries": retries}
    calls = TeacherCalls(read_section("annotate", TeacherSettings, values))
    txt = TxtFiles(txt_documents)
    files = find_files(paths, setting="TEXTS")
    _check_output(output, is_directory=shard_docs > 0, force=force)
    _check_apart(output, paths, files)
    setup_gpu(gpu_id)
    nlp = _load(pipeline, lang)
    if all(is_encoder(pipe) for _, pipe in nlp.pipeline):
        names = ", ".join(map(repr, nlp.pipe_names)) or "none"
        raise ConfigError(
            f"The pipeline has no component that annotates documents (its components: {names}). "
            "Give a pipeline with one, or a classifier of transformers."
        )
    part_docs = shard_docs or PART_DOCS
    settings = {
        "shard_docs": part_docs,
        "min_confidence": min_confidence,
        "exclusive_cats": exclusive_cats,
        "max_words": max_words,
    }
    directory = output if shard_docs else output.with_name(f"{output.name}.parts")
    parts = _Parts(directory, fingerprint_pipeline(nlp), settings, force=force)
    docs = islice(_read_docs(nlp, files, txt, max_words), limit or None)
    n_parts = annotated = 0
    while part := list(islice(docs, part_docs)):
        number, start = n_parts, n_parts * part_docs
        n_parts += 1
        digest = fingerprint_docs(part)
        if parts.has(number, digest, len(part)):
            continue
        if not annotated and number:
            log(f"Going on after {start:,} documents")
        kept, n_scored = _annotate(nlp, part, start, calls, min_confidence, exclusive_cats)
        parts.write(number, digest, len(part), n_scored, kept)
        annotated += len(part)
        log(f"{start + len(part):,} documents")
    parts.finish(n_parts)
    txt.tell(log)
    if not shard_docs:
        _merge(parts, output)
    counts = ("read", "scored", "kept", "words")
    total = {key: sum(part[key] for part in parts.entries) for key in counts}
    if min_confidence is not None and not total["scored"]:
        msg.warn(
            f"min_confidence = {min_confidence} leaves out nothing: no component leaves scores "
            '(probabilities of labels, doc.cats, or attrs["scores"] of a span group)'
        )
    if not total["kept"]:
        msg.warn(f"{output} has no documents: none is as sure as min_confidence")
    return SilverData(
        output, total["kept"], total["words"], total["read"] - total["kept"], annotated
    )


def _load(pipeline: Language | str | Path, lang: str | None) -> Language:
    """Load a pipeline, or make one of a model of transformers."""
    if lang is not None and (isinstance(pipeline, Language) or not is_hugging_face(pipeline)):
        raise ConfigError(
            f"lang = {lang!r}: the pipeline has a language of its own, and lang is for models of "
            "transformers. Leave it out."
        )
    return pipeline if isinstance(pipeline, Language) else load_teacher(str(pipeline), lang)


def _check_apart(output: Path, paths: Sequence[str | Path], files: Sequence[Path]) -> None:
    """Raise ConfigError if the output would be text to read, now or in the next call.

    files: in the paths. Files in a directory are text, but not those in directories inside it.
    """
    place = output.resolve()
    directories = {Path(path).resolve() for path in paths if Path(path).is_dir()}
    texts = {file.resolve() for file in files}
    is_inside = output.suffix == ".spacy" and place.parent in directories
    if is_inside or place in texts | directories | {text.parent for text in texts}:
        raise ConfigError(
            f"{output} is among the texts, and would be read as text. Give another output."
        )


def _check_output(output: Path, *, is_directory: bool, force: bool) -> None:
    if is_directory:
        if output.exists() and not output.is_dir():
            raise ConfigError(f"{output} is a file. With shard_docs, give a directory.")
        check_writable(output.resolve())
        return
    if output.suffix != ".spacy" or output.is_dir():
        raise ConfigError(
            f"{output} is not the name of a .spacy file. Give one, or a directory with "
            "--shard-docs."
        )
    if output.exists() and not force:
        raise ConfigError(f"{output} exists. Give another name, or replace it with --force.")
    check_file(output)


def _read_docs(
    nlp: Language, files: Iterable[Path], txt: TxtFiles, max_words: int
) -> Iterator[Doc]:
    """Yield the documents that have text."""
    parts = chain.from_iterable(read_parts(file, txt) for file in files)
    for part in parts:
        doc = nlp.make_doc(part.text)
        for each in split_doc(doc, max_words) if max_words else [doc]:
            if not each.text.isspace() and len(each):
                yield each


# Annotating


def _annotate(
    nlp: Language,
    docs: list[Doc],
    start: int,
    calls: TeacherCalls,
    min_confidence: float | None,
    exclusive_cats: bool,
) -> tuple[list[Doc], int]:
    """Annotate docs.

    start: number of the first doc, for errors.
    RETURNS (kept, n_scored): the docs that are sure enough, with categories of 0 and 1, and the
        number of docs that have a confidence.
    """
    kept = []
    n_scored = 0
    declares_entities = any(declares(nlp, name, Entities) for name in nlp.pipe_names)
    for batch in calls.batches(range(start, start + len(docs))):
        annotated = docs[batch.start - start : batch.stop - start]
        confidence = np.full(len(annotated), np.nan)
        for name, pipe in nlp.pipeline:
            if min_confidence is not None:
                confidence = np.fmin(confidence, _token_confidence(pipe, annotated))
            annotated = calls.annotate(name, pipe, annotated, batch)
        if min_confidence is not None:
            sure_of_docs = [_doc_confidence(nlp, doc, exclusive_cats) for doc in annotated]
            confidence = np.fmin(confidence, sure_of_docs)
            n_scored += int((~np.isnan(confidence)).sum())
        for doc, sure in zip(annotated, confidence.tolist(), strict=True):
            if min_confidence is None or not sure < min_confidence:  # NaN: nothing has a score
                doc.cats = _decide(nlp, doc, exclusive_cats)
                if declares_entities and not doc.has_annotation("ENT_IOB"):
                    doc.ents = []  # to spaCy, entities that nobody has set are unknown
                doc.tensor, doc.user_data = np.zeros((0,), dtype="f"), {}  # they are not written
                kept.append(doc)
    return kept, n_scored


def _token_confidence(pipe: Any, docs: Sequence[Doc]) -> Any:
    """Return the lowest probability of any token's best label for each doc, or NaN.

    NaN stands for docs without tokens, and for pipes without a softmax over labels of tokens.
    docs: annotated by all pipes before this one.
    """
    confidence = np.full(len(docs), np.nan)
    model = getattr(pipe, "model", None)
    if isinstance(pipe, TextCategorizer) or not isinstance(model, Model) or not is_softmax(model):
        return confidence
    filled = [i for i, doc in enumerate(docs) if len(doc)]
    for i, logs in zip(filled, log_probabilities(model, [docs[i] for i in filled]), strict=True):
        confidence[i] = math.exp(float(logs.max(axis=1).min()))
    return confidence


def _doc_confidence(nlp: Language, doc: Doc, exclusive_cats: bool) -> float:
    """Return the lowest confidence of categories and spans, NaN if there are none."""
    sure = [min(map(float, g.attrs["scores"])) for g in doc.spans.values() if _is_scored(g)]
    for label, score in doc.cats.items():
        check_probability(
            doc,
            label,
            score,
            "Nothing else can be compared with it. Leave min_confidence out.",
        )
    for labels, is_exclusive in _groups(nlp, doc, exclusive_cats=exclusive_cats):
        scores = [doc.cats[label] for label in labels]
        if is_exclusive:
            sure.append(max(scores))
        else:
            sure += [max(score, 1 - score) for score in scores]
    return min(sure, default=float("nan"))


def _is_scored(group: Any) -> bool:
    return len(group.attrs.get("scores", ())) > 0


def _groups(nlp: Language, doc: Doc, *, exclusive_cats: bool) -> Iterator[tuple[list[str], bool]]:
    """Yield the categories of a doc that belong together, and whether they exclude each other."""
    left = dict.fromkeys(doc.cats)
    for _, pipe in nlp.pipeline:
        if isinstance(pipe, TextCategorizer):
            own = [label for label in pipe.labels if label in left]
            left = {label: None for label in left if label not in own}
            if own:
                yield own, not isinstance(pipe, MultiLabel_TextCategorizer)
    if left:
        yield list(left), exclusive_cats


def _decide(nlp: Language, doc: Doc, exclusive_cats: bool) -> dict[str, float]:
    """Turn the scores of categories into 0 and 1, which is all that `spacy train` takes."""
    decided = {}
    for labels, is_exclusive in _groups(nlp, doc, exclusive_cats=exclusive_cats):
        best = max(labels, key=lambda label: doc.cats[label])
        for label in labels:
            score = doc.cats[label]
            if not is_exclusive:
                advice = "If the categories exclude each other, give --exclusive-cats."
                check_probability(doc, label, score, advice)
            decided[label] = float(label == best if is_exclusive else score >= LIKELY)
    return decided


# Files


class _Parts:
    """The parts in a directory.

    entries: of the parts, in their order: digest of the documents, numbers of documents that were
        read, have scores and were kept, their words, and SHA-256 of the file.
    """

    def __init__(
        self, directory: Path, pipeline: str, settings: Mapping[str, Any], *, force: bool
    ) -> None:
        self.directory = directory
        self._force = force
        self._head = {"format": FORMAT, "pipeline": pipeline, "settings": dict(settings)}
        state = self._read()
        if state is not None and state.items() >= self._head.items():
            self.entries: list[dict[str, Any]] = state["parts"]
            return
        if state is not None and not force:
            raise ConfigError(
                f"{directory} holds silver data of another pipeline or other settings. Give "
                "another output, or replace it with --force."
            )
        self.entries = []

    def _read(self) -> dict[str, Any] | None:
        path = self.directory / STATE
        if not self.directory.exists() or not any(self.directory.iterdir()):
            return None
        try:
            state = json.loads(path.read_text(encoding="utf8"))
        except (OSError, ValueError):
            state = None
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ConfigError(
                f"{self.directory} holds files, but no silver data ({STATE} is missing or "
                "damaged). Give another output."
            )
        return state

    def has(self, number: int, digest: str, n_docs: int) -> bool:
        """Tell whether a part is there. Raises ConfigError if it is one of other texts."""
        if number >= len(self.entries):
            return False
        entry = self.entries[number]
        if entry["documents"] == digest:
            path = self.path(number)
            return path.is_file() and digest_file(path) == entry["sha256"]
        is_continued = number == len(self.entries) - 1 and entry["read"] < n_docs
        if not (is_continued or self._force):
            raise ConfigError(
                f"{self.directory} holds silver data of other texts: document "
                f"{number * self._head['settings']['shard_docs']} or one soon after it differs. "  # type: ignore[index]
                "Give the same texts, another output, or replace it with --force."
            )
        del self.entries[number:]
        return False

    def path(self, number: int) -> Path:
        return self.directory / PART.replace("*", f"{number:05}")

    def write(
        self, number: int, digest: str, n_docs: int, n_scored: int, docs: Sequence[Doc]
    ) -> None:
        """Write a part.

        n_docs, n_scored: how many documents were read for it, and how many of them have scores.
        """
        path = self.path(number)
        _write(DocBin(attrs=ATTRIBUTES, docs=docs), path)
        entry = {
            "documents": digest,
            "read": n_docs,
            "scored": n_scored,
            "kept": len(docs),
            "words": sum(map(len, docs)),
            "sha256": digest_file(path),
        }
        self.entries[number:] = [entry, *self.entries[number + 1 :]]
        self._save()

    def finish(self, n_parts: int) -> None:
        """Delete parts that the texts no longer have.

        Raises CorpusError if there are no texts, and ConfigError if parts would be lost.
        """
        if not n_parts:
            raise CorpusError("The texts have no document with text in it. Give other files.")
        if n_parts < len(self.entries):
            if not self._force:
                raise ConfigError(
                    f"{self.directory} holds silver data of more documents than are given now. "
                    "Give the same texts, another output, or replace it with --force."
                )
            del self.entries[n_parts:]
            self._save()
        for path in set(self.directory.glob(PART)) - set(map(self.path, range(n_parts))):
            path.unlink()

    def _save(self) -> None:
        state = {**self._head, "parts": self.entries}
        write_text(self.directory / STATE, json.dumps(state, indent=2) + "\n")


def _write(data: DocBin, path: Path) -> None:
    with atomic_file(path) as unfinished:
        data.to_disk(unfinished)


def _merge(parts: _Parts, output: Path) -> None:
    """Join all parts into one file, and delete them."""
    whole = DocBin(attrs=ATTRIBUTES)
    for number in range(len(parts.entries)):
        whole.merge(DocBin().from_disk(parts.path(number)))
    _write(whole, output)
    shutil.rmtree(parts.directory)
