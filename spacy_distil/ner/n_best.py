"""The most probable ways to divide a text into entities."""

from __future__ import annotations

import math
from collections.abc import Iterable
from heapq import nlargest
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from spacy_distil.ner.decoding import B, I, L, U
from spacy_distil.ner.marginals import TOLERANCE, Marginals

# First token, end (exclusive) and number of the label.
Entity: TypeAlias = tuple[int, int, int]
# A score, and the last entity with what came before it: (entity, (entity, ... None)).
_Path: TypeAlias = tuple[float, Any]


def n_best(
    marginals: Marginals, n: int, begin: int, end: int
) -> list[tuple[float, tuple[Entity, ...]]]:
    """Find the n most probable readings of the tokens from `begin` to `end`, two given cuts.

    Readings are not found if they have an entity with a probability below `TOLERANCE`, or one that
    is right beside another where that is as improbable.

    marginals: of all tokens.
    RETURNS: at most n probabilities with the entities in their order, the most probable first.
    """
    bounds = np.flatnonzero(_cuts_of(marginals)[begin : end + 1]) + begin
    best: list[_Path] = [(0.0, None)]
    for first, last in pairwise(bounds.tolist()):
        own = _search(marginals, n, first, last)
        is_given = marginals.lattice.again is None or bool(marginals.lattice.cuts[first])
        best = _take(
            n,
            (
                (a + b, _join(before, entities))
                for a, before in best
                for b, entities in own
                if is_given or not _touch(before, entities)
            ),
        )
    total = marginals.log_sum(begin, end)
    return [(math.exp(score - total), _unroll(path)) for score, path in best]


def _cuts_of(marginals: Marginals) -> np.ndarray:
    """Find the boundaries at which the search may be divided: (n_tokens + 1,)."""
    cuts = marginals.cuts.copy()
    if marginals.lattice.again is None:  # a neighbour makes no difference
        cuts[:-1] |= marginals.crossings.sum(axis=1) < TOLERANCE
    return cuts


def _search(
    marginals: Marginals, n: int, begin: int, end: int
) -> list[tuple[float, tuple[Entity, ...]]]:
    """Find the n best readings of one stretch, from left to right."""
    lattice = marginals.lattice
    outside = lattice.outside[begin:end].tolist()
    moves = lattice.moves[begin:end]
    again = moves if lattice.again is None else lattice.again[begin:end]
    begins, ends = (each[begin:end] >= TOLERANCE for each in (marginals.begins, marginals.ends))
    goes_on = marginals.crossings[begin:end] >= TOLERANCE
    # The best paths up to each token, by the label of an entity that ends there, or None.
    best: list[dict[int | None, list[_Path]]] = [{None: [(0.0, None)]}]
    for stop in range(1, end - begin + 1):
        before = [path for own in best[stop - 1].values() for path in own]
        found: dict[int | None, list[_Path]] = {}
        found[None] = _take(n, ((score + outside[stop - 1], path) for score, path in before))
        for label in np.flatnonzero(ends[stop - 1]).tolist():
            paths: list[_Path] = []
            inner = 0.0
            for start in reversed(range(stop)):
                if start < stop - 2:
                    inner += moves[start + 1, label, I]
                edge, rest = (
                    (U, 0.0) if start == stop - 1 else (B, inner + moves[stop - 1, label, L])
                )
                if begins[start, label]:
                    entity = (begin + start, begin + stop, label)
                    for previous, own in best[start].items():
                        first = (again if previous == label else moves)[start, label, edge]
                        score = float(first + rest)
                        if score > -np.inf:
                            paths += [(s + score, (entity, path)) for s, path in own]
                if not goes_on[start, label]:
                    break
            found[label] = _take(n, paths)
        best.append(found)
    paths = _take(n, (path for own in best[-1].values() for path in own))
    return [(score, _unroll(path)) for score, path in paths]


def _touch(path: Any, entities: tuple[Entity, ...]) -> bool:
    """Whether the last entity of a path ends where the first of others begins."""
    return bool(path and entities and path[0][1] == entities[0][0])


def _join(path: Any, entities: tuple[Entity, ...]) -> Any:
    for entity in entities:
        path = (entity, path)
    return path


def _unroll(path: Any) -> tuple[Entity, ...]:
    entities = []
    while path:
        entity, path = path
        entities.append(entity)
    return tuple(reversed(entities))


def _take(n: int, paths: Iterable[_Path]) -> list[_Path]:
    return nlargest(n, paths, key=lambda path: path[0])
