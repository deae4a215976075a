"""What there is to compare between two pipelines' annotations of the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.pipeline import MultiLabel_TextCategorizer
from spacy.tokens import Doc

SENT_START = 1  # in Doc.to_array


@dataclass(frozen=True)
class Answer:
    """n: number of units. agreement: share or F, 0 to 1. max_difference: of scores, if any."""

    n: int
    agreement: float
    max_difference: float | None = None


Compare = Callable[[Sequence[Doc], Sequence[Doc]], Answer]


@dataclass(frozen=True)
class Question:
    """One annotation of one pipe. Its fields are those of `agreement.Measure`.

    compare: the answer for two pipelines' docs.
    """

    pipe: str
    annotation: str
    unit: str
    compare: Compare


@dataclass(frozen=True)
class _Kind:
    """Annotations that belong together.

    assigns: their names in `assigns`. The names of the others are not compared.
    is_set: whether a doc has them.
    questions: annotation, unit and comparison of each question about them, for a pipe, or for
        `None` where they are not those of a certain pipe.
    """

    assigns: frozenset[str]
    is_set: Callable[[Doc], bool]
    questions: Callable[[Any], Iterable[tuple[str, str, Compare]]]


def find_questions(nlp: Language, docs: Iterable[Doc]) -> list[Question]:
    """Everything that can be compared, in the order of the pipes.

    nlp: the pipes' `assigns` say what they write.
    docs: some annotated docs: they show what else is written, by pipes that do not say so.
    """
    assigned = {name: set(nlp.get_pipe_meta(name).assigns) for name in nlp.pipe_names}
    questions = [
        Question(name, *question)
        for name in nlp.pipe_names
        for kind in _KINDS
        if kind.assigns & assigned[name]
        for question in kind.questions(nlp.get_pipe(name))
    ]
    declared = set().union(*assigned.values())
    silent = ", ".join(name for name in nlp.pipe_names if not assigned[name]) or "?"
    docs = [doc for doc in docs if len(doc)]  # an empty one "has" everything, by spaCy
    for kind in _KINDS:
        if not kind.assigns & declared and any(map(kind.is_set, docs)):
            questions += [Question(silent, *question) for question in kind.questions(None)]
    return questions


def not_compared(nlp: Language) -> list[str]:
    """What the pipes assign and no question is about, as "PIPE: ANNOTATION"."""
    known = {"doc.tensor"}.union(*(kind.assigns for kind in _KINDS))
    return [
        f"{name}: {assigned}"
        for name in nlp.pipe_names
        for assigned in nlp.get_pipe_meta(name).assigns
        if assigned not in known
    ]


# Tokens


def _share_of_tokens(*attributes: str) -> Compare:
    def compare(left: Sequence[Doc], right: Sequence[Doc]) -> Answer:
        same = [
            (_array(one, attributes) == _array(other, attributes)).all(axis=1)
            for one, other in zip(left, right, strict=True)
        ]
        return _share(np.concatenate(same))

    return compare


def _array(doc: Doc, attributes: Sequence[str]) -> np.ndarray:
    """(n_tokens, n_attributes) uint64; a string is its hash, the same in every vocab."""
    return doc.to_array(list(attributes)).reshape(len(doc), len(attributes))


def _share(same: np.ndarray) -> Answer:
    return Answer(len(same), float(same.mean()) if len(same) else 1.0)


def _token_attribute(attribute: str, *, annotation: str | None = None) -> _Kind:
    name = annotation or f"token.{attribute.lower()}"
    compare = _share_of_tokens(attribute)
    return _Kind(
        assigns=frozenset({name}),
        is_set=lambda doc: doc.has_annotation(attribute),
        questions=lambda pipe: [(name, "tokens", compare)],
    )


# Spans


def _f_of_spans(find: Callable[[Doc], set[Hashable]]) -> Compare:
    """F of one pipeline's spans with the other's in place of gold: it is the same both ways."""

    def compare(left: Sequence[Doc], right: Sequence[Doc]) -> Answer:
        n = hits = 0
        for one, other in zip(left, right, strict=True):
            spans, others = find(one), find(other)
            n += len(spans) + len(others)
            hits += len(spans & others)
        return Answer(n, 2 * hits / n if n else 1.0)

    return compare


def _entities(doc: Doc) -> set[Hashable]:
    return {(ent.start, ent.end, ent.label) for ent in doc.ents}


def _sentences(doc: Doc) -> set[Hashable]:
    starts = np.flatnonzero(_starts(doc)).tolist()
    return set(zip(starts, [*starts[1:], len(doc)], strict=True)) if starts else set()


def _starts(doc: Doc) -> np.ndarray:
    """Whether a sentence starts at each token, (n_tokens,); one does at the first."""
    starts = doc.to_array(["SENT_START"]).astype(np.int64).reshape(-1) == SENT_START
    starts[:1] = True
    return starts


def _same_starts(left: Sequence[Doc], right: Sequence[Doc]) -> Answer:
    pairs = zip(left, right, strict=True)
    return _share(np.concatenate([_starts(one) == _starts(other) for one, other in pairs]))


def _span_questions(pipe: Any) -> Iterator[tuple[str, str, Compare]]:
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


def _category_questions(pipe: Any) -> Iterator[tuple[str, str, Compare]]:
    """About the pipe's own labels: several pipes may write into the same `doc.cats`."""
    labels = frozenset(getattr(pipe, "labels", ()))
    threshold: float | None = None
    if isinstance(pipe, MultiLabel_TextCategorizer):
        threshold = pipe.cfg.get("threshold")
        threshold = 0.5 if threshold is None else threshold

    def decide(cats: dict[str, float]) -> set[str]:
        if threshold is not None:
            return {label for label, score in cats.items() if score >= threshold}
        return {max(sorted(cats), key=lambda label: cats[label])} if cats else set()

    def compare(left: Sequence[Doc], right: Sequence[Doc]) -> Answer:
        same = []
        largest = 0.0
        for docs in zip(left, right, strict=True):
            one, other = (
                {label: doc.cats[label] for label in doc.cats if not labels or label in labels}
                for doc in docs
            )
            same.append(decide(one) == decide(other))
            for label in one.keys() | other.keys():
                largest = max(largest, abs(one.get(label, 0.0) - other.get(label, 0.0)))
        answer = _share(np.array(same))
        return Answer(answer.n, answer.agreement, max_difference=float(largest))

    yield "doc.cats", "docs", compare


_KINDS = (
    _token_attribute("TAG"),
    _token_attribute("POS"),
    _token_attribute("MORPH"),
    _token_attribute("LEMMA"),
    _Kind(
        assigns=frozenset({"token.dep", "token.head"}),
        is_set=lambda doc: doc.has_annotation("DEP"),
        questions=lambda pipe: [("token.dep+head", "tokens", _share_of_tokens("DEP", "HEAD"))],
    ),
    _Kind(
        assigns=frozenset({"token.is_sent_start", "doc.sents"}),
        # spaCy says so of every doc of one token too.
        is_set=lambda doc: len(doc) > 1 and doc.has_annotation("SENT_START"),
        questions=lambda pipe: [
            ("token.is_sent_start", "tokens", _same_starts),
            ("doc.sents", "spans", _f_of_spans(_sentences)),
        ],
    ),
    _Kind(
        assigns=frozenset({"doc.ents", "token.ent_iob", "token.ent_type"}),
        is_set=lambda doc: bool(doc.ents),
        questions=lambda pipe: [
            ("token.ent_iob+type", "tokens", _share_of_tokens("ENT_IOB", "ENT_TYPE")),
            ("doc.ents", "spans", _f_of_spans(_entities)),
        ],
    ),
    _token_attribute("ENT_KB_ID", annotation="token.ent_kb_id"),
    _Kind(
        assigns=frozenset({"doc.spans"}),
        is_set=lambda doc: any(map(len, doc.spans.values())),
        questions=_span_questions,
    ),
    _Kind(
        assigns=frozenset({"doc.cats"}),
        is_set=lambda doc: bool(doc.cats),
        questions=_category_questions,
    ),
)
