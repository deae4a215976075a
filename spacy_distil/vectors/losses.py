"""Losses of vectors of texts, with their gradients.

All take vectors (n, width) of any length, and compare them by cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_SMALLEST = 1e-12


def unit(vectors: Any, xp: Any = np) -> tuple[Any, Any]:
    """Scale rows to the length 1. RETURNS (units, lengths): (n, width), and (n, 1)."""
    lengths = xp.maximum(xp.linalg.norm(vectors, axis=1, keepdims=True), _SMALLEST)
    return vectors / lengths, lengths


def _to_vectors(d_units: Any, units: Any, lengths: Any) -> Any:
    """Turn the gradient of units into the one of the vectors that they were made of."""
    return (d_units - units * (units * d_units).sum(axis=1, keepdims=True)) / lengths


def cosine_distance(vectors: Any, targets: Any, xp: Any = np) -> tuple[float, Any]:
    """Sum 1 - cosine of each vector and its target, of the same width.

    A target of zeros does not count. RETURNS (loss, d_vectors).
    """
    units, lengths = unit(vectors, xp)
    goals, _ = unit(targets, xp)
    counts = xp.any(targets != 0, axis=1, keepdims=True)
    loss = ((1 - (units * goals).sum(axis=1, keepdims=True)) * counts).sum()
    return float(loss), _to_vectors(-goals * counts, units, lengths)


def similarity_distance(
    vectors: Any, targets: Any, xp: Any = np, *, scale: float = 1.0
) -> tuple[float, Any]:
    """Sum, over all vectors, the mean squared difference of their cosines with the others and the
    cosines of the targets, whatever the two widths are.

    Matrices of similarities are the knowledge in Tung and Mori 2019, arXiv 1907.09682 (eq. 3),
    there with another normalization.

    scale: factor of the loss. RETURNS (loss, d_vectors).
    """
    n = len(vectors)
    if n < 2:
        return 0.0, xp.zeros_like(vectors)
    units, lengths = unit(vectors, xp)
    goals, _ = unit(targets, xp)
    difference = units @ units.T - goals @ goals.T
    xp.fill_diagonal(difference, 0)
    factor = scale / (n - 1)
    # Each cosine is in two cells.
    return float(factor * (difference**2).sum()), _to_vectors(
        4 * factor * (difference @ units), units, lengths
    )


def in_batch_negatives(
    vectors: Any, groups: Sequence[str], xp: Any = np, *, temperature: float = 0.05
) -> tuple[float, Any]:
    """Sum the cross-entropy of finding a text of the same group among all others of the batch.

    Each text asks for each of the other texts of its group, with the texts of other groups as
    negatives (Henderson et al. 2017, arXiv 1705.00652, section 4.4; cosines over a temperature as
    in Chen et al. 2020, arXiv 2002.05709, eq. 1). A text that is alone in its group does not ask.

    groups: of each vector.
    RETURNS (loss, d_vectors).
    """
    units, lengths = unit(vectors, xp)
    numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    own = xp.asarray([numbers[group] for group in groups])
    same = own[:, None] == own[None]
    positive = same & ~xp.eye(len(groups), dtype=bool)
    logits = (units @ units.T) / temperature
    # Texts of the same group are no negatives of each other.
    others = xp.where(same, -xp.inf, logits)
    top = xp.maximum(others.max(axis=1, keepdims=True), logits.max(axis=1, keepdims=True))
    total = xp.exp(others - top).sum(axis=1, keepdims=True)
    # log of (own positive + all negatives), for each pair of a text and its positive
    both = xp.log(total + xp.exp(logits - top)) + top
    share = positive / xp.maximum(positive.sum(axis=1, keepdims=True), 1)
    loss = float((share * (both - logits)).sum())
    hits = xp.exp(logits - both)  # probability of the positive in its own comparison
    d_logits = share * (hits - 1)
    misses = (share * xp.exp(-both + top)).sum(axis=1, keepdims=True)
    d_logits = d_logits + xp.exp(others - top) * misses
    d_logits = d_logits / temperature
    return loss, _to_vectors((d_logits + d_logits.T) @ units, units, lengths)


def scored_pairs(
    vectors: Any, pairs: Sequence[tuple[int, int]], scores: Sequence[float], xp: Any = np
) -> tuple[float, Any]:
    """Sum the squared difference of the cosine of each pair and its score.

    pairs: indices of vectors.
    RETURNS (loss, d_vectors).
    """
    units, lengths = unit(vectors, xp)
    d_units = xp.zeros_like(units)
    loss = 0.0
    for (i, j), score in zip(pairs, scores, strict=True):
        difference = float((units[i] * units[j]).sum()) - score
        loss += difference**2
        d_units[i] += 2 * difference * units[j]
        d_units[j] += 2 * difference * units[i]
    return loss, _to_vectors(d_units, units, lengths)
