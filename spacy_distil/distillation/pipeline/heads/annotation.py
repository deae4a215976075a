"""Kinds of annotation: how each is recorded from docs that a pipe has annotated, and written back.

A pipe of the student learns one kind. Numbers of labels stand for labels, and MISSING for tokens
that tell nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
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
from spacy.morphology import Morphology as Features  # type: ignore[import-not-found]
from spacy.parts_of_speech import IDS as POS_IDS  # type: ignore[import-not-found]
from spacy.pipeline import (
    DependencyParser,
    EditTreeLemmatizer,
    EntityRecognizer,
    Morphologizer,
    MultiLabel_TextCategorizer,
    SentenceRecognizer,
    SpanCategorizer,
    Tagger,
    TextCategorizer,
)
from spacy.pipeline._edit_tree_internals.edit_trees import (  # type: ignore[import-not-found]
    EditTrees,
)
from spacy.strings import StringStore
from spacy.tokens import Doc, Span, SpanGroup

from spacy_distil.distillation.pipeline.heads.base import Array, Field, PipeSettings
from spacy_distil.distillation.pipeline.labels import morphology_labels
from spacy_distil.errors import ConfigError
from spacy_distil.ner.decoding import MISSING, OUTSIDE, B, I, L, U
from spacy_distil.ner.pipe import DistilNER
from spacy_distil.pairs.pair_pipe import DistilPair
from spacy_distil.pairs.qa_pipe import DistilQA
from spacy_distil.pairs.questions import answers_of, set_answers
from spacy_distil.vectors.pairs import VECTOR
from spacy_distil.vectors.pipe import DistilVectors

Hashes = NDArray[np.uint64]

# Values of token.ent_iob.
_UNSET, _INSIDE, _OUTSIDE, _BEGIN = range(4)
# From here on, a category of a textcat_multilabel without a threshold applies.
LIKELY = 0.5


class Annotation(ABC):
    """One kind of annotation.

    pipe: of the student, which learns the annotation.
    labels: in the order of their numbers.
    strings: the store that gives the labels their hashes: of the docs to read or to write.

    assigns: what spaCy calls it where a component declares its annotation.
    fields: the fields of the records.
    attributes: names of token attributes. A token with any of them is annotated.
    has_labels: whether the annotation consists of labels that the pipe has, or has not.
    """

    assigns: ClassVar[frozenset[str]]
    fields: Mapping[str, Field]
    attributes: ClassVar[tuple[str, ...]] = ()
    has_labels: ClassVar[bool] = True

    def __init__(
        self, pipe: Any, labels: Sequence[str], strings: StringStore, settings: PipeSettings
    ) -> None:
        self._pipe = pipe
        self._labels = labels
        self._settings = settings
        self._hashes: Hashes = np.array([strings.add(label) for label in labels], dtype=np.uint64)

    @abstractmethod
    def read(self, doc: Doc) -> dict[str, Array]:
        """Return an array for each field, (rows, width)."""

    @abstractmethod
    def write(self, doc: Doc, rows: Mapping[str, Array]) -> None:
        """Replace the annotation of a doc.

        rows: as `read` returns them.
        """

    @abstractmethod
    def labels_of(self, doc: Doc) -> Counter[str]:
        """Count the labels in a doc's annotation, whether the pipe has them or not."""

    def transfer(self, doc: Doc, reference: Doc) -> None:
        """Write the annotation of a doc to another one of the same tokens and strings."""
        self.write(reference, self.read(doc))

    def is_annotated(self, doc: Doc) -> bool:
        """Tell whether any token of a doc has the annotation."""
        return any(map(doc.has_annotation, self.attributes))

    def _numbers_of(self, hashes: Hashes) -> NDArray[np.int64]:
        """Return the numbers of labels, -1 for unknown ones.

        hashes: (n_tokens,).
        RETURNS: (n_tokens,).
        """
        if not len(self._hashes):
            return np.full(len(hashes), -1)
        order = np.argsort(self._hashes)
        places = np.searchsorted(self._hashes, hashes, sorter=order)
        numbers = order[np.minimum(places, len(order) - 1)]
        return np.where(self._hashes[numbers] == hashes, numbers, -1)


def annotation_of(pipe: Any, settings: PipeSettings | None = None) -> type[Annotation] | None:
    """Return the kind of annotation that a pipe of the student learns, or None if it is unknown."""
    from_spans = settings is not None and settings.spans_key is not None
    kinds: list[tuple[Any, type[Annotation]]] = [
        (EntityRecognizer, SpanEntities if from_spans else Entities),
        (DistilNER, SpanEntities if from_spans else Entities),
        (DependencyParser, Dependencies),
        (Morphologizer, Morphology),
        (SentenceRecognizer, SentenceStarts),
        (EditTreeLemmatizer, Lemmas),
        (Tagger, Tags),  # the base class of the three before it
        (TextCategorizer, Cats),
        (SpanCategorizer, Spans),
        (DistilVectors, Vectors),
        (DistilPair, PairCats),
        (DistilQA, FoundAnswers),
    ]
    return next((each for kind, each in kinds if isinstance(pipe, kind)), None)


def declares(teacher: Language, name: str, kind: type[Annotation]) -> bool:
    """Tell whether a pipe of the teacher declares that it sets a kind of annotation."""
    return not kind.assigns.isdisjoint(teacher.get_pipe_meta(name).assigns)


class Entities(Annotation):
    """BILUO tags, as `ner.decoding` numbers them.

    Blocked tokens are MISSING, and so are entities whose labels are not the pipe's. A doc that the
    teacher has left as it was has none.
    """

    assigns = frozenset({"doc.ents", "token.ent_type", "token.ent_iob"})
    fields: Mapping[str, Field] = {"tags": Field("token", 1, "int16")}
    attributes = ("ENT_IOB",)

    def read(self, doc: Doc) -> dict[str, Array]:
        iob, types = doc.to_array([ENT_IOB, ENT_TYPE]).T
        if not iob.any():
            iob = np.full_like(iob, _OUTSIDE)
        labels = self._numbers_of(types)
        starts = iob == _BEGIN
        ends = np.ones(len(doc), dtype=bool)
        ends[:-1] = iob[1:] != _INSIDE
        move = np.select([starts & ends, starts, ends], [U, B, L], I)
        tags = np.where(iob == _OUTSIDE, OUTSIDE, 1 + 4 * labels + move)
        tags[(iob == _UNSET) | ((iob != _OUTSIDE) & (labels < 0))] = MISSING
        return {"tags": tags.astype(np.int16)[:, None]}

    def write(self, doc: Doc, rows: Mapping[str, Array]) -> None:
        tags = rows["tags"][:, 0]
        # The attributes of each tag. MISSING is -1, so it takes the last row.
        attributes: Any = np.zeros((1 + 4 * len(self._hashes) + 1, 2), dtype=np.uint64)
        attributes[OUTSIDE, 0] = _OUTSIDE
        attributes[1:-1, 0] = [_BEGIN, _INSIDE, _INSIDE, _BEGIN] * len(self._hashes)
        attributes[1:-1, 1] = np.repeat(self._hashes, 4)
        doc.from_array([ENT_IOB, ENT_TYPE], attributes[tags])

    def labels_of(self, doc: Doc) -> Counter[str]:
        return Counter(ent.label_ for ent in doc.ents)


class SpanEntities(Entities):
    """The same, from a span group of the teacher.

    Of spans that overlap, the one with the highest score counts, or the longest if there are none.
    """

    assigns = frozenset({"doc.spans"})

    def read(self, doc: Doc) -> dict[str, Array]:
        scored = _scored_spans(doc, str(self._settings.spans_key), self._settings.threshold)
        taken: set[int] = set()
        entities = []
        for span, _ in sorted(scored, key=lambda each: (-each[1], each[0].start - each[0].end)):
            tokens = range(span.start, span.end)
            if tokens and taken.isdisjoint(tokens):
                taken.update(tokens)
                entities.append(Span(doc, span.start, span.end, span.label))
        copy = Doc(doc.vocab, words=["x"] * len(doc))
        copy.set_ents([Span(copy, each.start, each.end, each.label) for each in entities])
        return super().read(copy)

    def labels_of(self, doc: Doc) -> Counter[str]:
        key = str(self._settings.spans_key)
        spans = _scored_spans(doc, key, self._settings.threshold)
        return Counter(span.label_ for span, _ in spans)


class Dependencies(Annotation):
    """Syntactic heads, relative to their children, and dependencies.

    Sentences follow from the heads.
    """

    assigns = frozenset({"token.dep", "token.head"})
    fields: Mapping[str, Field] = {
        "heads": Field("token", 1, "int32"),
        "deps": Field("token", 1, "int16"),
    }
    attributes = ("DEP",)

    def read(self, doc: Doc) -> dict[str, Array]:
        heads, deps = doc.to_array([HEAD, DEP]).T
        return {
            # Negative numbers are stored as two's complement.
            "heads": heads.astype(np.int64).astype(np.int32)[:, None],
            "deps": self._numbers_of(deps).astype(np.int16)[:, None],
        }

    def write(self, doc: Doc, rows: Mapping[str, Array]) -> None:
        columns: Any = np.zeros((len(doc), 2), dtype=np.uint64)
        columns[:, 0] = rows["heads"][:, 0].astype(np.int64).astype(np.uint64)
        columns[:, 1] = np.append(self._hashes, np.uint64(0))[rows["deps"][:, 0]]
        doc.from_array([HEAD, DEP], columns)

    def labels_of(self, doc: Doc) -> Counter[str]:
        return Counter(token.dep_ for token in doc if token.dep)


class _TokenLabels(Annotation):
    """Annotation of one number per token."""

    fields: Mapping[str, Field] = {"labels": Field("token", 1, "int32")}

    def read(self, doc: Doc) -> dict[str, Array]:
        return {"labels": np.array(self._read(doc), dtype=np.int32).reshape(len(doc), 1)}

    @abstractmethod
    def _read(self, doc: Doc) -> Sequence[int] | NDArray[np.int64]: ...


class Tags(_TokenLabels):
    """Fine-grained parts of speech. A token without one is MISSING."""

    assigns = frozenset({"token.tag"})
    attributes = ("TAG",)

    def _read(self, doc: Doc) -> NDArray[np.int64]:
        hashes: Any = doc.to_array(TAG)
        return self._numbers_of(hashes)

    def write(self, doc: Doc, rows: Mapping[str, Array]) -> None:
        tags: Any = np.append(self._hashes, np.uint64(0))[rows["labels"]]
        doc.from_array([TAG], tags)

    def labels_of(self, doc: Doc) -> Counter[str]:
        return Counter(token.tag_ for token in doc if token.tag)


class Morphology(_TokenLabels):
    """Parts of speech and features, joined as a morphologizer joins them."""

    assigns = frozenset({"token.pos", "token.morph"})
    attributes = ("POS", "MORPH")

    def _read(self, doc: Doc) -> list[int]:
        numbers = {label: i for i, label in enumerate(self._labels)}
        return [numbers.get(label, MISSING) for label in morphology_labels(doc)]

    def write(self, doc: Doc, rows: Mapping[str, Array]) -> None:
        columns: Any = np.zeros((len(self._labels) + 1, 2), dtype=np.uint64)
        for i, label in enumerate(self._labels):
            features = Features.feats_to_dict(label)
            columns[i, 0] = POS_IDS[features.pop(Morphologizer.POS_FEAT, "")]
            columns[i, 1] = doc.vocab.morphology.add(features)
        doc.from_array([POS, MORPH], columns[rows["labels"][:, 0]])

    def labels_of(self, doc: Doc) -> Counter[str]:
        return Counter(filter(None, morphology_labels(doc)))


class SentenceStarts(_TokenLabels):
    """1 for a token that starts a sentence, -1 for one that does not, 0 for an unknown one."""

    assigns = frozenset({"token.is_sent_start", "doc.sents"})
    attributes = ("SENT_START",)
    has_labels = False

    def _read(self, doc: Doc) -> list[int]:
        return [{True: 1, False: -1, None: 0}[token.is_sent_start] for token in doc]

    def write(self, doc: Doc, rows: Mapping[str, Array]) -> None:
        starts: Any = rows["labels"].astype(np.int64).astype(np.uint64)
        doc.from_array([SENT_START], starts)

    def labels_of(self, doc: Doc) -> Counter[str]:
        # To spaCy the first token of any doc starts a sentence.
        return Counter(str(start) for start in self._read(doc)[1:] if start)


class Lemmas(_TokenLabels):
    """Edit trees, by their numbers, that make the lemma of a token. Unknown trees are MISSING."""

    assigns = frozenset({"token.lemma"})
    attributes = ("LEMMA",)
    has_labels = False

    def __init__(
        self, pipe: Any, labels: Sequence[str], strings: StringStore, settings: PipeSettings
    ) -> None:
        super().__init__(pipe, (), strings, settings)

    @cached_property
    def _copies(self) -> Any:
        """The trees of the pipe. Looking for a tree adds it, so the pipe keeps its own."""
        trees = EditTrees(self._pipe.vocab.strings)
        trees.from_bytes(self._pipe.trees.to_bytes())
        return trees

    def _read(self, doc: Doc) -> list[int]:
        known = set(self._pipe.tree2label)
        trees = (self._copies.add(t.text, t.lemma_) if t.lemma else MISSING for t in doc)
        return [tree if tree in known else MISSING for tree in trees]

    def write(self, doc: Doc, rows: Mapping[str, Array]) -> None:
        column: Any = np.zeros((len(doc), 1), dtype=np.uint64)
        for token, tree in zip(doc, rows["labels"][:, 0].tolist(), strict=True):
            lemma = self._pipe.trees.apply(tree, token.text) if tree != MISSING else None
            column[token.i] = doc.vocab.strings.add(lemma) if lemma else 0
        doc.from_array([LEMMA], column)

    def labels_of(self, doc: Doc) -> Counter[str]:
        return Counter(token.lemma_ for token in doc if token.lemma)

    def transfer(self, doc: Doc, reference: Doc) -> None:
        """Copy the lemmas: before it is initialized, the pipe has no trees."""
        lemmas: Any = doc.to_array(LEMMA)
        reference.from_array([LEMMA], lemmas[:, None])


class Spans(Annotation):
    """Spans of a group: first token, the one after the last, and label."""

    assigns = frozenset({"doc.spans"})
    fields: Mapping[str, Field] = {"spans": Field("item", 3, "int32")}

    @property
    def _key(self) -> str:
        """The teacher's group."""
        return self._settings.spans_key or str(self._pipe.key)

    def read(self, doc: Doc) -> dict[str, Array]:
        numbers = {label: i for i, label in enumerate(self._labels)}
        rows = [
            (span.start, span.end, numbers[span.label_])
            for span, _ in _scored_spans(doc, self._key, self._settings.threshold)
            if span.label_ in numbers
        ]
        return {"spans": np.array(rows, dtype=np.int32).reshape(len(rows), 3)}

    def write(self, doc: Doc, rows: Mapping[str, Array]) -> None:
        doc.spans[self._pipe.key] = [
            Span(doc, start, end, label=self._labels[label])
            for start, end, label in rows["spans"].tolist()
        ]

    def labels_of(self, doc: Doc) -> Counter[str]:
        spans = _scored_spans(doc, self._key, self._settings.threshold)
        return Counter(span.label_ for span, _ in spans)

    def is_annotated(self, doc: Doc) -> bool:
        return self._pipe.key in doc.spans


class Cats(Annotation):
    """Probabilities of a doc's categories. NaN in all of them if the doc has none of the labels.

    A category that the teacher leaves out counts as 0. Silver annotation is 1 for the categories
    that the teacher decides on: the highest score if they exclude each other, or those that reach
    the threshold.
    """

    assigns = frozenset({"doc.cats"})

    def __init__(
        self, pipe: Any, labels: Sequence[str], strings: StringStore, settings: PipeSettings
    ) -> None:
        super().__init__(pipe, labels, strings, settings)
        self.fields = {"scores": Field("doc", len(labels), "float32")}
        self._is_exclusive = not isinstance(pipe, MultiLabel_TextCategorizer)

    def read(self, doc: Doc) -> dict[str, Array]:
        return {"scores": self._probabilities(doc)[None]}

    def _probabilities(self, doc: Doc) -> Array:
        scores = np.array([doc.cats.get(label, 0.0) for label in self._labels], dtype=np.float64)
        missing = np.full(len(scores), np.nan, dtype=np.float32)
        if doc.cats.keys().isdisjoint(self._labels) or not len(doc):
            return missing
        if self._settings.target == "silver":
            best = max(doc.cats, key=lambda label: doc.cats[label])
            if self._is_exclusive:
                is_known = best in self._labels
                return self._one_hot(self._labels.index(best)) if is_known else missing
            return (scores >= self._threshold).astype(np.float32)
        section = f"distillation.pipes.{self._pipe.name}"
        for label, score in doc.cats.items():
            advice = f'Set target = "silver" in [{section}] to learn the decisions.'
            check_probability(doc, label, score, advice)
        if self._is_exclusive:
            return (scores / scores.sum()).astype(np.float32) if scores.any() else missing
        return scores.clip(max=1).astype(np.float32)

    def _one_hot(self, label: int) -> Array:
        return np.eye(len(self._labels), dtype=np.float32)[label]

    @property
    def _threshold(self) -> float:
        return LIKELY if self._settings.threshold is None else self._settings.threshold

    def write(self, doc: Doc, rows: Mapping[str, Array]) -> None:
        """Write decisions, since spaCy takes 0 and 1 alone."""
        scores = rows["scores"][0]
        if np.isnan(scores).any():
            doc.cats = {}
            return
        decided = (
            self._one_hot(int(scores.argmax())) if self._is_exclusive else scores >= self._threshold
        )
        doc.cats = dict(zip(self._labels, map(float, decided), strict=True))

    def labels_of(self, doc: Doc) -> Counter[str]:
        return Counter(doc.cats.keys())

    def is_annotated(self, doc: Doc) -> bool:
        return not doc.cats.keys().isdisjoint(self._labels)


class Vectors(Annotation):
    """The vector of a doc. No row if the doc has none.

    No component declares it: a teacher of another kind cannot teach it.
    """

    assigns = frozenset()
    has_labels = False

    def __init__(
        self, pipe: Any, labels: Sequence[str], strings: StringStore, settings: PipeSettings
    ) -> None:
        super().__init__(pipe, labels, strings, settings)
        self.fields = {"vector": Field("item", self._pipe.width, "float32")}

    def read(self, doc: Doc) -> dict[str, Array]:
        vector = doc.user_data.get(VECTOR)
        rows = np.zeros((0, self._pipe.width)) if vector is None else np.asarray(vector)[None]
        return {"vector": rows.astype(np.float32)}

    def write(self, doc: Doc, rows: Mapping[str, Array]) -> None:
        doc.user_data.pop(VECTOR, None)
        for vector in rows["vector"]:
            doc.user_data[VECTOR] = vector

    def labels_of(self, doc: Doc) -> Counter[str]:
        return Counter()

    def is_annotated(self, doc: Doc) -> bool:
        return VECTOR in doc.user_data


class PairCats(Annotation):
    """The categories or the score of a doc and the text that it names. NaN if the doc has none.

    No component declares it: a teacher of another kind cannot teach it.
    """

    assigns = frozenset()

    def __init__(
        self, pipe: Any, labels: Sequence[str], strings: StringStore, settings: PipeSettings
    ) -> None:
        super().__init__(pipe, labels, strings, settings)
        self.fields = {"scores": Field("doc", len(labels), "float32")}

    def read(self, doc: Doc) -> dict[str, Array]:
        scores = [doc.cats.get(label, np.nan) for label in self._labels]
        return {"scores": np.array([scores], dtype=np.float32)}

    def write(self, doc: Doc, rows: Mapping[str, Array]) -> None:
        scores = zip(self._labels, rows["scores"][0].tolist(), strict=True)
        doc.cats = {label: score for label, score in scores if not np.isnan(score)}

    def labels_of(self, doc: Doc) -> Counter[str]:
        return Counter(doc.cats.keys())

    def is_annotated(self, doc: Doc) -> bool:
        return not doc.cats.keys().isdisjoint(self._labels)


class FoundAnswers(Annotation):
    """The best answer to each question about a doc: rows of question, first character, and the one
    behind the last. Both are -1 for no answer.

    No component declares it: a teacher of another kind cannot teach it.
    """

    assigns = frozenset()
    has_labels = False
    fields: ClassVar[Mapping[str, Field]] = {"answers": Field("item", 3, "float32")}  # type: ignore[misc]

    def read(self, doc: Doc) -> dict[str, Array]:
        answers = answers_of(doc, self._pipe.cfg["answers"]) or []
        rows = [
            (i, own[0]["start"], own[0]["end"]) if own else (i, -1, -1)
            for i, own in enumerate(answers)
        ]
        return {"answers": np.array(rows, dtype=np.float32).reshape(-1, 3)}

    def write(self, doc: Doc, rows: Mapping[str, Array]) -> None:
        found = [
            [{"text": doc.text[start:end], "start": start, "end": end}] if start >= 0 else []
            for _, start, end in rows["answers"].astype(int).tolist()
        ]
        set_answers(doc, self._pipe.cfg["answers"], found or None)

    def labels_of(self, doc: Doc) -> Counter[str]:
        return Counter()

    def is_annotated(self, doc: Doc) -> bool:
        return answers_of(doc, self._pipe.cfg["answers"]) is not None


def check_probability(doc: Doc, label: str, score: float, advice: str) -> None:
    """Raise ConfigError if the score of a doc's category is no probability.

    advice: what to do, a sentence.
    """
    if not 0 <= score <= 1 + 1e-4:
        raise ConfigError(
            f"doc.cats[{label!r}] = {score:.4g} on the document {doc.text[:60]!r}: expected a "
            f"probability from 0 to 1. {advice}"
        )


def _scored_spans(doc: Doc, key: str, threshold: float | None) -> list[tuple[Span, float]]:
    """List the spans of a group with their scores, 0 for all if it has none.

    threshold: leaves out spans with lower scores. None keeps all.
    Raises ConfigError if there are no scores to compare with the threshold.
    """
    group: Iterable[Span] = doc.spans.get(key, ())
    spans = list(group)
    scores = group.attrs.get("scores") if isinstance(group, SpanGroup) else None
    if scores is None:
        if spans and threshold is not None:
            raise ConfigError(
                f"threshold = {threshold}, but the teacher's span group {key!r} has no "
                'attrs["scores"], one for each span. Leave the threshold out.'
            )
        return [(span, 0.0) for span in spans]
    if len(scores) != len(spans):
        raise ConfigError(
            f"The teacher's span group {key!r} has {len(spans)} spans and {len(scores)} scores in "
            f"the document {doc.text[:60]!r}: expected one for each span."
        )
    scored = zip(spans, map(float, scores), strict=True)
    return [(span, score) for span, score in scored if threshold is None or score >= threshold]
