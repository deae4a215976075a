"""The annotation of a teacher, pipe by pipe: each document goes through the teacher once.

Teachers of no known kind teach by what they leave on docs, and may be slow or paid. So whole docs
are recorded, before the student's labels are known. They are kept in a cache of their own, as
bytes, with the shards, digests and resuming of any other record.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import srsly
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab
from wasabi import msg

from spacy_distil.distillation.pipeline.cache import TeacherCache, open_cache
from spacy_distil.distillation.pipeline.calls import TeacherCalls, run_pipeline
from spacy_distil.distillation.pipeline.heads import Head, PipeSettings
from spacy_distil.distillation.pipeline.heads.annotation import (
    Annotation,
    SentenceStarts,
    annotation_of,
)
from spacy_distil.distillation.pipeline.heads.base import Array, Field
from spacy_distil.distillation.pipeline.labels import list_labels
from spacy_distil.errors import ConfigError
from spacy_distil.pairs.questions import ANSWERS
from spacy_distil.text.docs import FURTHER_TEXT, same_tokens
from spacy_distil.vectors.pairs import VECTOR

_ANNOTATION = "annotation"
# What `Decisions` keeps of the user data of docs, beside texts and answers.
_KEPT = (VECTOR,)


class Decisions:
    """Docs as pipes of the teacher left them.

    sources: names of these pipes.
    fingerprint: of the docs.
    """

    def __init__(self, cache: TeacherCache, sources: Collection[str], fingerprint: str) -> None:
        self.sources = frozenset(sources)
        self.fingerprint = fingerprint
        self._cache = cache

    def __len__(self) -> int:
        return self._cache.layout.n_docs

    def docs(self, source: str, numbers: Sequence[int], vocab: Vocab) -> list[Doc]:
        """Return docs after a pipe, without tensors. Of their user data, they keep what our pipes
        have set or read: vectors, texts and answers.

        numbers: of the docs.
        """
        rows = self._cache.read(numbers)[source][_ANNOTATION]
        return [_to_doc(each, vocab) for each in rows]

    def apply(self, source: str, docs: Sequence[Doc], numbers: Sequence[int]) -> list[Doc]:
        """Return the docs that a pipe would make of others, which keep user data and vectors."""
        annotated = self.docs(source, numbers, docs[0].vocab) if docs else []
        for doc, new in zip(docs, annotated, strict=True):
            new.tensor, new.user_data = doc.tensor, doc.user_data
        return annotated


def record_decisions(
    teacher: Language,
    docs: Sequence[Doc],
    sources: Collection[str],
    calls: TeacherCalls,
    directory: Path,
    *,
    fingerprint: Mapping[str, str],
    force: bool = False,
) -> Decisions:
    """Run the teacher over docs, unless the cache in `directory` has them, and record them.

    docs: of any vocab. The teacher runs over their tokens.
    sources: names of the pipes after which docs are recorded.
    fingerprint, force: see `open_cache`. The former is of "the teacher" and "the documents".
    """

    def record(numbers: range) -> dict[str, dict[str, list[Array]]]:
        rows: dict[str, list[Array]] = defaultdict(list)
        for batch in calls.batches(numbers):
            copies = [same_tokens(docs[number], teacher.vocab) for number in batch]
            missing = set(sources)
            for name, _, annotated in run_pipeline(teacher, copies, batch, calls):
                if name in missing:
                    rows[name] += map(_to_rows, annotated)
                    missing.remove(name)
                if not missing:
                    break
        return {name: {_ANNOTATION: rows[name]} for name in sources}

    cache = open_cache(
        directory,
        fingerprint=fingerprint,
        fields={name: {_ANNOTATION: Field("item", 1, "uint8")} for name in sources},
        lengths=list(map(len, docs)),
        record=record,
        force=force,
        shard_tokens=calls.settings.shard_tokens,
    )
    return Decisions(cache, sources, fingerprint["the documents"])


def silver_examples(
    student: Language,
    docs: Sequence[Doc],
    decisions: Decisions,
    pairs: Mapping[str, str],
    pipes: Mapping[str, PipeSettings],
) -> list[Example]:
    """Annotate docs as the teacher decides, for pipes that have no labels yet.

    docs: the student's.
    pairs: the teacher's name of each pipe, by the student's.
    Raises ConfigError if the teacher decides nothing that shows a pipe its labels.
    """
    references = [same_tokens(doc, doc.vocab) for doc in docs]
    for name, source in _in_order(student, pairs):
        settings = _settings(pipes, name)
        pipe: Any = student.get_pipe(name)
        kind = _kind(pipe, settings)
        annotated = decisions.docs(source, range(len(docs)), student.vocab)
        labels = _count_labels(kind(pipe, (), student.vocab.strings, settings), annotated)
        if not labels:
            raise ConfigError(
                f"The teacher's {source!r} has set nothing on the {len(docs):,} documents that "
                f"{name!r} could learn ({', '.join(sorted(kind.assigns))}), so its labels are not "
                f"known{_groups(annotated)}. Give other documents, or set teacher or spans_key in "
                f"[distillation.pipes.{name}]."
            )
        annotation = kind(pipe, sorted(labels), student.vocab.strings, settings)
        for doc, reference in zip(annotated, references, strict=True):
            annotation.transfer(doc, reference)
    return [Example(doc, reference) for doc, reference in zip(docs, references, strict=True)]


def agreement_examples(
    student: Language,
    docs: Sequence[Doc],
    decisions: Decisions,
    pairs: Mapping[str, str],
    pipes: Mapping[str, PipeSettings],
) -> list[Example]:
    """Annotate docs as the teacher does, to score a student by how far it agrees.

    student: initialized.
    See `silver_examples` for the other arguments.
    """
    references = [same_tokens(doc, doc.vocab) for doc in docs]
    for name, source in _in_order(student, pairs):
        settings = _settings(pipes, name)
        pipe: Any = student.get_pipe(name)
        kind = _kind(pipe, settings)
        labels = list(map(str, pipe.labels)) if kind.has_labels else []
        annotation = kind(pipe, labels, student.vocab.strings, settings)
        annotated = decisions.docs(source, range(len(docs)), student.vocab)
        for doc, reference in zip(annotated, references, strict=True):
            annotation.write(reference, annotation.read(doc))
    return [Example(doc, reference) for doc, reference in zip(docs, references, strict=True)]


def warn_of_unknown_labels(heads: Mapping[str, Head], decisions: Decisions, vocab: Vocab) -> None:
    """Tell the user in yellow which labels of the teacher's decisions the student lacks."""
    for name, head in heads.items():
        kind = annotation_of(head.student, head.settings)
        if not head.reads_annotation or kind is None or not kind.has_labels:
            continue
        annotation = kind(head.student, (), vocab.strings, head.settings)
        docs = decisions.docs(head.settings.source(name), range(len(decisions)), vocab)
        labels = _count_labels(annotation, docs)
        unknown = {label: n for label, n in labels.items() if label not in head.student.labels}
        if unknown:
            msg.warn(
                f"{name} does not learn {sum(unknown.values()):,} of "
                f"{sum(labels.values()):,} decisions of the teacher: it lacks the labels "
                f"{list_labels(set(unknown))}"
            )


def _in_order(student: Language, pairs: Mapping[str, str]) -> list[tuple[str, str]]:
    """List pairs, sentence starts first: a parser's sentences replace theirs."""
    return sorted(
        pairs.items(), key=lambda pair: annotation_of(student.get_pipe(pair[0])) != SentenceStarts
    )


def _settings(pipes: Mapping[str, PipeSettings], name: str) -> PipeSettings:
    return pipes.get(name, PipeSettings())


def _kind(pipe: Any, settings: PipeSettings) -> type[Annotation]:
    kind = annotation_of(pipe, settings)
    assert kind is not None  # of all pipes that are in a pair
    return kind


def _count_labels(annotation: Annotation, docs: Iterable[Doc]) -> Counter[str]:
    labels: Counter[str] = Counter()
    for doc in docs:
        labels += annotation.labels_of(doc)
    return labels


def _groups(docs: Iterable[Doc]) -> str:
    """Name the span groups of docs."""
    names = sorted({key for doc in docs for key in doc.spans})
    return f" (its span groups: {', '.join(map(repr, names))})" if names else ""


def _to_rows(doc: Doc) -> Array:
    kept = (
        doc.to_bytes(exclude=["tensor", "user_data"]),
        {key: value for key, value in doc.user_data.items() if key in _KEPT or _is_text(key)},
    )
    data = zlib.compress(srsly.msgpack_dumps(kept))
    return np.frombuffer(data, dtype=np.uint8)[:, None]


def _to_doc(rows: Array, vocab: Vocab) -> Doc:
    kept = srsly.msgpack_loads(zlib.decompress(np.ascontiguousarray(rows).tobytes()))
    doc = Doc(vocab).from_bytes(kept[0])
    doc.user_data.update(kept[1])
    return doc


def _is_text(key: Any) -> bool:
    """Tell whether an entry of user data is a text or an answer of a pipe that reads pairs."""
    return isinstance(key, str) and key.startswith((FURTHER_TEXT, ANSWERS))
