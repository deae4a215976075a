"""Scores of vectors: how well they find related texts, and rank scored pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from spacy.tokens import Doc
from spacy.training import Example

from spacy_distil.vectors.losses import unit
from spacy_distil.vectors.pairs import VECTOR, Relation, read_relation, read_relations


def make_vectors_scorer() -> Callable[[Iterable[Example]], dict[str, Any]]:
    """Return the scorer of `distil_vectors`."""
    return score_vectors


def score_vectors(examples: Iterable[Example], **settings: Any) -> dict[str, Any]:
    """Score the vectors of the predicted docs against the relations of the references.

    RETURNS: "vectors_recall_at_1" and "vectors_mrr" of groups, "vectors_spearman" of scored pairs,
        and "vectors_agreement", the mean cosine with the vectors of the references, if these were
        annotated by a pipeline with vectors of the same width. Each is from 0 (or -1) to 1, and
        missing if there is nothing to score. Queries look for the documents of their group among
        all documents; if no text is a query, each text looks for the others of its group among all
        other texts.
    """
    examples = [each for each in examples if len(each.predicted)]
    relations = read_relations(examples)
    if examples and all(each.predicted is each.reference for each in examples):
        return _score_perfectly(examples, relations)
    vectors = [_vector_of(each.predicted) for each in examples]
    scores: dict[str, Any] = {}
    pairs = [
        unit(np.stack([own, np.asarray(target)]))[0]
        for own, each in zip(vectors, examples, strict=True)
        if (target := each.reference.user_data.get(VECTOR)) is not None and len(target) == len(own)
    ]
    if pairs:
        scores["vectors_agreement"] = float(np.mean([one @ other for one, other in pairs]))
    scored = [each for each in relations if each.score is not None]
    if len(scored) > 1:
        first = unit(np.stack([vectors[each.members[0]] for each in scored]))[0]
        second = unit(np.stack([vectors[each.members[1]] for each in scored]))[0]
        cosines = (first * second).sum(axis=1)
        scores["vectors_spearman"] = spearman(cosines, [each.score for each in scored])
    return {**scores, **_score_groups(examples, vectors)}


def _vector_of(doc: Doc) -> np.ndarray:
    """Return the vector of a doc, whether it has hooks or not."""
    vector = doc.user_data.get(VECTOR)
    return np.asarray(doc.vector if vector is None else vector)


def _score_perfectly(examples: Sequence[Example], relations: Sequence[Relation]) -> dict[str, Any]:
    """Score references against themselves: relations have no vectors of their own."""
    scores: dict[str, Any] = {}
    if any(each.score is None for each in relations):
        scores |= {"vectors_recall_at_1": 1.0, "vectors_mrr": 1.0}
    if sum(each.score is not None for each in relations) > 1:
        scores["vectors_spearman"] = 1.0
    if any(VECTOR in each.reference.user_data for each in examples):
        scores["vectors_agreement"] = 1.0
    return scores


def _score_groups(examples: Sequence[Example], vectors: Sequence[Any]) -> dict[str, Any]:
    found = [(i, read_relation(example)) for i, example in enumerate(examples)]
    grouped = [(i, own) for i, own in found if own is not None and own.get("score") is None]
    queries = [(i, own["group"]) for i, own in grouped if own.get("role") == "query"]
    documents = [(i, own["group"]) for i, own in grouped if own.get("role") == "document"]
    if not queries:
        queries = documents = [(i, own["group"]) for i, own in grouped]
    # The same text is one document.
    texts = {(examples[i].text, group): (i, group) for i, group in documents}
    documents = list(texts.values()) if queries is not documents else documents
    ranks = []
    if queries and documents:
        groups = np.array([group for _, group in documents])
        places = np.array([i for i, _ in documents])
        matrix = unit(np.stack([vectors[i] for i in places.tolist()]))[0]
        for i, group in queries:
            cosines = matrix @ unit(vectors[i][None])[0][0]
            others = places != i
            right = (groups == group) & others
            if right.any():
                best = cosines[right].max()
                # A tie counts against the query.
                ranks.append(1 + int((cosines[others & (groups != group)] >= best).sum()))
    if not ranks:
        return {}
    return {
        "vectors_recall_at_1": float(np.mean([rank == 1 for rank in ranks])),
        "vectors_mrr": float(np.mean([1 / rank for rank in ranks])),
    }


def spearman(left: Sequence[Any] | np.ndarray, right: Sequence[Any] | np.ndarray) -> float:
    """Compute Spearman's rank correlation, with mean ranks for ties; 0 if one side is constant."""
    ranks = [_rank(np.asarray(values, dtype=np.float64)) for values in (left, right)]
    centred = [own - own.mean() for own in ranks]
    lengths = np.linalg.norm(centred[0]) * np.linalg.norm(centred[1])
    return float(centred[0] @ centred[1] / lengths) if lengths else 0.0


def _rank(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places.ravel()]
