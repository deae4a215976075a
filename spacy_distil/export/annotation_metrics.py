"""Metrics of how far two pipelines' annotations of the same tokens agree."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.tokens import Doc
from thinc.api import to_numpy

from spacy_distil.pairs.questions import answers_of
from spacy_distil.report.worker import category_threshold

SENT_START = 1  # in Doc.to_array


@dataclass(frozen=True)
class MetricValue:
    """Value of a metric over documents.

    n: number of units.
    agreement: share of the units, or F, 0 to 1.
    max_difference: largest difference of a score; `None` for annotations without scores.
    """

    n: int
    agreement: float
    max_difference: float | None = None


Compare = Callable[[Sequence[Doc], Sequence[Doc]], MetricValue]


@dataclass(frozen=True)
class AnnotationMetric:
    """A metric of one annotation of one pipe. For its names see `agreement.PipeMeasure`.

    compare: computes the value from the docs of two pipelines.
    """

    pipe: str
    annotation: str
    unit: str
    compare: Compare


@dataclass(frozen=True)
class _AnnotationKind:
    """Annotations that are compared together.

    assigns: their names in the `assigns` of a pipe.
    is_set: whether a doc has them.
    metrics: makes annotation, unit and comparison of each metric for a pipe, or for `None` if no
        pipe declares the annotations.
    """

    assigns: frozenset[str]
    is_set: Callable[[Doc], bool]
    metrics: Callable[[Any], Iterable[tuple[str, str, Compare]]]


def find_metrics(nlp: Language, docs: Iterable[Doc]) -> list[AnnotationMetric]:
    """Find the metrics for all annotations of a pipeline, in the order of its pipes.

    nlp: its pipes declare their annotations in `assigns`.
    docs: annotated docs. They show the annotations of pipes that declare none.
    """
    assigned = {name: set(nlp.get_pipe_meta(name).assigns) for name in nlp.pipe_names}
    metrics = [
        AnnotationMetric(name, *metric)
        for name in nlp.pipe_names
        for kind in _KINDS
        if kind.assigns & assigned[name]
        for metric in kind.metrics(nlp.get_pipe(name))
    ]
    declared = set().union(*assigned.values())
    silent = ", ".join(name for name in nlp.pipe_names if not assigned[name]) or "?"
    docs = [doc for doc in docs if len(doc)]  # spaCy says that an empty doc has every annotation
    for kind in _KINDS:
        if not kind.assigns & declared and any(map(kind.is_set, docs)):
            metrics += [AnnotationMetric(silent, *metric) for metric in kind.metrics(None)]
    return metrics


def _vector_metrics(pipe: Any) -> Iterator[tuple[str, str, Compare]]:
    """The mean cosine of the vectors of docs, which counts as their agreement."""

    def compare(left: Sequence[Doc], right: Sequence[Doc]) -> MetricValue:
        cosines, largest = [], 0.0
        for docs in zip(left, right, strict=True):
            one, other = (np.asarray(to_numpy(doc.vector), dtype=np.float64) for doc in docs)
            norms = np.linalg.norm(one) * np.linalg.norm(other)
            cosines.append(float(one @ other / norms) if norms else float((one == other).all()))
            largest = max(largest, float(np.abs(one - other).max(initial=0)))
        return MetricValue(len(cosines), float(np.mean(cosines)) if cosines else 1.0, largest)

    yield "doc.vector", "docs", compare


def not_compared(nlp: Language) -> list[str]:
    """List the annotations that pipes declare and no metric covers, as "PIPE: ANNOTATION"."""
    covered = {"doc.tensor"}.union(*(kind.assigns for kind in _KINDS))
    return [
        f"{name}: {assigned}"
        for name in nlp.pipe_names
        for assigned in nlp.get_pipe_meta(name).assigns
        if assigned not in covered
    ]


# Tokens


def _share_of_tokens(*attributes: str) -> Compare:
    def compare(left: Sequence[Doc], right: Sequence[Doc]) -> MetricValue:
        equal = [
            (_array(one, attributes) == _array(other, attributes)).all(axis=1)
            for one, other in zip(left, right, strict=True)
        ]
        return _share(np.concatenate(equal))

    return compare


def _array(doc: Doc, attributes: Sequence[str]) -> np.ndarray:
    """RETURNS: (n_tokens, n_attributes) uint64. A string is its hash, the same in every vocab."""
    return doc.to_array(list(attributes)).reshape(len(doc), len(attributes))


def _share(equal: np.ndarray) -> MetricValue:
    return MetricValue(len(equal), float(equal.mean()) if len(equal) else 1.0)


def _token_attribute(attribute: str, *, annotation: str | None = None) -> _AnnotationKind:
    name = annotation or f"token.{attribute.lower()}"
    compare = _share_of_tokens(attribute)
    return _AnnotationKind(
        assigns=frozenset({name}),
        is_set=lambda doc: doc.has_annotation(attribute),
        metrics=lambda pipe: [(name, "tokens", compare)],
    )


# Spans


def _f_of_spans(find: Callable[[Doc], set[Hashable]]) -> Compare:
    """F with the spans of one pipeline as gold. It is the same in both directions."""

    def compare(left: Sequence[Doc], right: Sequence[Doc]) -> MetricValue:
        n = hits = 0
        for one, other in zip(left, right, strict=True):
            spans, others = find(one), find(other)
            n += len(spans) + len(others)
            hits += len(spans & others)
        return MetricValue(n, 2 * hits / n if n else 1.0)

    return compare


def _entities(doc: Doc) -> set[Hashable]:
    return {(ent.start, ent.end, ent.label) for ent in doc.ents}


def _sentences(doc: Doc) -> set[Hashable]:
    starts = np.flatnonzero(_starts(doc)).tolist()
    return set(zip(starts, [*starts[1:], len(doc)], strict=True)) if starts else set()


def _starts(doc: Doc) -> np.ndarray:
    """Whether a sentence starts at each token, (n_tokens,). One always starts at the first."""
    starts = doc.to_array(["SENT_START"]).astype(np.int64).reshape(-1) == SENT_START
    starts[:1] = True
    return starts


def _equal_starts(left: Sequence[Doc], right: Sequence[Doc]) -> MetricValue:
    pairs = zip(left, right, strict=True)
    return _share(np.concatenate([_starts(one) == _starts(other) for one, other in pairs]))


def _span_metrics(pipe: Any) -> Iterator[tuple[str, str, Compare]]:
    key = getattr(pipe, "key", None)

    def find(doc: Doc) -> set[Hashable]:
        return {
            (name, span.start, span.end, span.label)
            for name, group in doc.spans.items()
            if name == key or not isinstance(key, str)
            for span in group
        }

    name = f'doc.spans["{key}"]' if isinstance(key, str) else "doc.spans"
    yield name, "spans", _f_of_spans(find)


# Categories


def _category_metrics(pipe: Any) -> Iterator[tuple[str, str, Compare]]:
    """Only for the pipe's own labels: several pipes may write to the same `doc.cats`."""
    labels = frozenset(getattr(pipe, "labels", ()))
    threshold = category_threshold(pipe)

    def decide(cats: dict[str, float]) -> set[str]:
        if threshold is not None:
            return {label for label, score in cats.items() if score >= threshold}
        return {max(sorted(cats), key=lambda label: cats[label])} if cats else set()

    def compare(left: Sequence[Doc], right: Sequence[Doc]) -> MetricValue:
        equal = []
        largest = 0.0
        for docs in zip(left, right, strict=True):
            one, other = (
                {label: doc.cats[label] for label in doc.cats if not labels or label in labels}
                for doc in docs
            )
            equal.append(decide(one) == decide(other))
            for label in one.keys() | other.keys():
                largest = max(largest, abs(one.get(label, 0.0) - other.get(label, 0.0)))
        value = _share(np.array(equal))
        return MetricValue(value.n, value.agreement, max_difference=float(largest))

    yield "doc.cats", "docs", compare


# Answers


def _answer_metrics(pipe: Any) -> Iterator[tuple[str, str, Compare]]:
    """The share of the questions that get the same answer, or none."""

    def find(doc: Doc) -> list[Any]:
        answers = answers_of(doc, pipe.cfg["answers"]) or []
        return [[(each["start"], each["end"]) for each in own[:1]] for own in answers]

    def compare(left: Sequence[Doc], right: Sequence[Doc]) -> MetricValue:
        equal = [
            one == other
            for docs in zip(left, right, strict=True)
            for one, other in zip(*map(find, docs), strict=True)
        ]
        return _share(np.array(equal))

    yield "doc._.answers", "questions", compare


_KINDS = (
    _AnnotationKind(
        assigns=frozenset({"doc._.answers"}),
        is_set=lambda doc: False,  # only pipes that declare them set answers
        metrics=_answer_metrics,
    ),
    _token_attribute("TAG"),
    _token_attribute("POS"),
    _token_attribute("MORPH"),
    _token_attribute("LEMMA"),
    _AnnotationKind(
        assigns=frozenset({"token.dep", "token.head"}),
        is_set=lambda doc: doc.has_annotation("DEP"),
        metrics=lambda pipe: [("token.dep+head", "tokens", _share_of_tokens("DEP", "HEAD"))],
    ),
    _AnnotationKind(
        assigns=frozenset({"token.is_sent_start", "doc.sents"}),
        # spaCy says that every doc of one token has sentences.
        is_set=lambda doc: len(doc) > 1 and doc.has_annotation("SENT_START"),
        metrics=lambda pipe: [
            ("token.is_sent_start", "tokens", _equal_starts),
            ("doc.sents", "spans", _f_of_spans(_sentences)),
        ],
    ),
    _AnnotationKind(
        assigns=frozenset({"doc.ents", "token.ent_iob", "token.ent_type"}),
        is_set=lambda doc: bool(doc.ents),
        metrics=lambda pipe: [
            ("token.ent_iob+type", "tokens", _share_of_tokens("ENT_IOB", "ENT_TYPE")),
            ("doc.ents", "spans", _f_of_spans(_entities)),
        ],
    ),
    _token_attribute("ENT_KB_ID", annotation="token.ent_kb_id"),
    _AnnotationKind(
        assigns=frozenset({"doc.vector"}),
        is_set=lambda doc: False,  # every doc with a tensor has one
        metrics=_vector_metrics,
    ),
    _AnnotationKind(
        assigns=frozenset({"doc.spans"}),
        is_set=lambda doc: any(map(len, doc.spans.values())),
        metrics=_span_metrics,
    ),
    _AnnotationKind(
        assigns=frozenset({"doc.cats"}),
        is_set=lambda doc: bool(doc.cats),
        metrics=_category_metrics,
    ),
)
