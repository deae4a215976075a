"""The documents that two pipelines annotate most differently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import spacy
from spacy.tokens import Doc

from spacy_distil.report.predictions import Predictions, best_category

# Start and end of an annotation in the text, in characters, to its label.
Labels: TypeAlias = dict[tuple[int, int], str]
# The place of what belongs to no part of the text.
WHOLE = (0, 0)

N_DOCUMENTS = 10


@dataclass(frozen=True)
class Annotation:
    """Something that pipelines write on documents.

    name: in tables.
    read: reads it from a doc, with the categories as by `find_categories`.
    on_tokens: whether each token has it. Tokens that only one of the pipelines has do not count.
    """

    name: str
    read: Callable[[Doc, dict[str, Any] | None], Labels]
    on_tokens: bool = False


def _read_entities(doc: Doc, categories: dict[str, Any] | None) -> Labels:
    return {(ent.start_char, ent.end_char): ent.label_ for ent in doc.ents}


def _read_categories(doc: Doc, categories: dict[str, Any] | None) -> Labels:
    """The best of exclusive categories; otherwise all with a score over the threshold."""
    if categories is None or not doc.cats:
        return {}
    labels, threshold = categories["labels"], categories["threshold"]
    if threshold is None:
        return {WHOLE: best_category(doc.cats, labels) or ""}
    return {WHOLE: ", ".join(label for label in labels if doc.cats.get(label, 0.0) >= threshold)}


def _tag_reader(attribute: str) -> Callable[[Doc, dict[str, Any] | None], Labels]:
    return lambda doc, categories: {
        (token.idx, token.idx + len(token)): getattr(token, attribute)
        for token in doc
        if not token.is_space
    }


# By `Column.key`.
ANNOTATIONS = {
    "pos_acc": Annotation("UPOS", _tag_reader("pos_"), on_tokens=True),
    "tag_acc": Annotation("XPOS", _tag_reader("tag_"), on_tokens=True),
    "ents_f": Annotation("entity", _read_entities),
    "cats_macro_f": Annotation("category", _read_categories),
}


@dataclass(frozen=True)
class Difference:
    """An annotation that two pipelines disagree on.

    place: see `Labels`.
    labels: of both pipelines; empty for none.
    """

    annotation: Annotation
    place: tuple[int, int]
    labels: tuple[str, str]


@dataclass(frozen=True)
class DifferentDocument:
    """A document as two pipelines see it.

    index: its place in the test set, from 0.
    """

    index: int
    docs: tuple[Doc, Doc]
    differences: Sequence[Difference]


@dataclass(frozen=True)
class Differences:
    """Documents that two pipelines annotate most differently.

    n_documents: number of documents with any difference.
    documents: the most different ones first.
    """

    n_documents: int
    documents: Sequence[DifferentDocument]


def find_most_different(
    first: Predictions,
    second: Predictions,
    annotations: Sequence[Annotation],
    *,
    n: int = N_DOCUMENTS,
) -> Differences:
    """Find the documents in which two pipelines differ most.

    A document counts by its share of all differences in an annotation, summed over the annotations.
    So a few categories weigh as much as many tags.
    """
    pair = (first, second)
    differing: dict[int, list[Difference]] = {}
    for i, docs in enumerate(_read_both(pair)):
        if found := _compare(docs, pair, annotations):
            differing[i] = found
    totals = Counter(each.annotation for found in differing.values() for each in found)
    weights = {
        i: sum(1 / totals[each.annotation] for each in found) for i, found in differing.items()
    }
    most = sorted(weights, key=lambda i: (-weights[i], i))[:n]
    # Docs take much memory, so they are made once more instead of being kept.
    docs_of = {i: docs for i, docs in enumerate(_read_both(pair)) if i in most} if most else {}
    return Differences(
        len(differing), [DifferentDocument(i, docs_of[i], differing[i]) for i in most]
    )


def _read_both(pair: tuple[Predictions, Predictions]) -> Iterable[tuple[Doc, Doc]]:
    vocab = spacy.blank("xx").vocab
    return zip(pair[0].docs(vocab), pair[1].docs(vocab), strict=True)


def _compare(
    docs: tuple[Doc, Doc], pair: tuple[Predictions, Predictions], annotations: Sequence[Annotation]
) -> list[Difference]:
    """Find the differences of a document, in the order of the text."""
    found = []
    for annotation in annotations:
        one, other = (
            annotation.read(doc, predictions.categories)
            for doc, predictions in zip(docs, pair, strict=True)
        )
        places = one.keys() & other.keys() if annotation.on_tokens else one.keys() | other.keys()
        for place in places:
            labels = one.get(place, ""), other.get(place, "")
            if labels[0] != labels[1]:
                found.append(Difference(annotation, place, labels))
    return sorted(found, key=lambda each: (each.place, each.annotation.name))
