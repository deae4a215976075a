"""The most probable ways to divide a text into entities."""

from __future__ import annotations

import math
from collections.abc import Iterable
from heapq import nlargest
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from spacy_distil.ner.decoding import B, I, L, U
from spacy_distil.ner.marginals import Lattice, Marginals

# First token, end (exclusive) and number of the label.
Entity: TypeAlias = tuple[int, int, int]
# Entities in the order of the tokens, behind their score or probability.
Reading: TypeAlias = tuple[float, tuple[Entity, ...]]


def n_best(marginals: Marginals, n: int, begin: int, end: int) -> list[Reading]:
    """Find the n most probable readings of the tokens from `begin` to `end`, two cuts.

    The search goes through all entities of each stretch between two safe cuts, and takes time with
    the square of its length. Readings in which both neighbours of a safe cut are inside, whose
    probability is below `TOLERANCE`, are not found.

    marginals: of all tokens.
    RETURNS: at most n readings with their probabilities, the best one first.
    """

    def apart(before: tuple[Entity, ...], after: tuple[Entity, ...], cut: int) -> bool:
        """Whether one neighbour of a cut is outside, or the cut is given."""
        is_given = bool(marginals.lattice.cuts[cut])
        return is_given or not (before and after and before[-1][1] == cut == after[0][0])

    bounds = np.flatnonzero(marginals.cuts)
    bounds = bounds[(bounds >= begin) & (bounds <= end)].tolist()
    best: list[Reading] = [(0.0, ())]
    for first, last in pairwise(bounds):
        own = _search(marginals.lattice, n, first, last)
        pairs = ((a + b, x + y) for a, x in best for b, y in own if apart(x, y, first))
        best = _take(n, pairs)
    total = marginals.log_sum(begin, end)
    return [(math.exp(score - total), entities) for score, entities in best]


def _search(lattice: Lattice, n: int, begin: int, end: int) -> list[Reading]:
    """Find the n best readings of one stretch, from left to right."""
    outside = lattice.outside[begin:end].tolist()
    moves = lattice.moves[begin:end]
    again = moves if lattice.again is None else lattice.again[begin:end]
    n_labels = moves.shape[1]
    # The best readings up to each token, by the label of an entity that ends there, or None.
    best: list[dict[int | None, list[Reading]]] = [{None: [(0.0, ())]}]
    for stop in range(1, end - begin + 1):
        before = [reading for own in best[stop - 1].values() for reading in own]
        found: dict[int | None, list[Reading]] = {}
        found[None] = _take(n, ((s + outside[stop - 1], x) for s, x in before))
        for label in range(n_labels):
            readings: list[Reading] = []
            inner = 0.0
            for start in reversed(range(stop)):
                if start < stop - 2:
                    inner += moves[start + 1, label, I]
                if start == stop - 1:
                    edges, rest = U, 0.0
                else:
                    edges, rest = B, inner + moves[stop - 1, label, L]
                entity = (begin + start, begin + stop, label)
                for previous, own in best[start].items():
                    first = (again if previous == label else moves)[start, label, edges]
                    score = float(first + rest)
                    if score > -np.inf:
                        readings += [(s + score, (*x, entity)) for s, x in own]
            found[label] = _take(n, readings)
        best.append(found)
    return _take(n, (reading for own in best[-1].values() for reading in own))


def _take(n: int, readings: Iterable[Reading]) -> list[Reading]:
    return nlargest(n, readings, key=lambda reading: reading[0])
