"""Losses against naive loops, and their gradients against differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from spacy_distil.vectors.losses import (
    cosine_distance,
    in_batch_negatives,
    scored_pairs,
    similarity_distance,
)

GROUPS = ["a", "b", "a", "c", "b", "a", "d"]


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def check(
    compute: Callable[[np.ndarray], tuple[float, Any]], vectors: np.ndarray, expected: float
) -> None:
    loss, gradient = compute(vectors)
    assert loss == pytest.approx(expected, rel=1e-6)
    numeric = approx_fprime(
        vectors.ravel(), lambda flat: compute(flat.reshape(vectors.shape))[0], 1e-6
    )
    np.testing.assert_allclose(gradient.ravel(), numeric, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_the_direction_of_the_teacher(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, targets = rng.normal(size=(2, 4, 5))
    targets[2] = 0  # a doc without tokens
    expected = sum(1 - cosine(vectors[i], targets[i]) for i in (0, 1, 3))
    check(lambda own: cosine_distance(own, targets), vectors, expected)
    assert not cosine_distance(vectors, targets)[1][2].any()


@pytest.mark.parametrize("seed", range(5))
def test_cosines_of_other_widths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, targets = rng.normal(size=(4, 3)), rng.normal(size=(4, 6))
    expected = sum(
        (cosine(vectors[i], vectors[j]) - cosine(targets[i], targets[j])) ** 2 / 3
        for i in range(4)
        for j in range(4)
        if i != j
    )
    check(lambda own: similarity_distance(own, targets), vectors, expected)
    assert similarity_distance(vectors[:1], targets[:1])[0] == 0


@pytest.mark.parametrize("seed", range(5))
def test_negatives_of_the_batch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(len(GROUPS), 4))
    expected = 0.0
    for i, group in enumerate(GROUPS):
        mates = [j for j, other in enumerate(GROUPS) if other == group and j != i]
        strangers = [j for j, other in enumerate(GROUPS) if other != group]
        for j in mates:
            logits = [cosine(vectors[i], vectors[k]) / 0.1 for k in (j, *strangers)]
            loss = np.log(np.exp(logits).sum()) - logits[0]
            expected += loss / len(mates)
    check(lambda own: in_batch_negatives(own, GROUPS, temperature=0.1), vectors, expected)


@pytest.mark.parametrize("groups", [["a", "a"], ["a", "b"], ["a", "a", "a"]])
def test_batches_with_nothing_to_compare(groups: list[str]) -> None:
    vectors = np.random.default_rng(0).normal(size=(len(groups), 4))
    loss, gradient = in_batch_negatives(vectors, groups)
    assert loss == pytest.approx(0)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(5, 4))
    pairs, scores = [(0, 1), (2, 4), (1, 2)], [0.5, -1.0, 0.0]
    expected = sum(
        (cosine(vectors[i], vectors[j]) - score) ** 2
        for (i, j), score in zip(pairs, scores, strict=True)
    )
    check(lambda own: scored_pairs(own, pairs, scores), vectors, expected)


def test_equal_and_zero_vectors() -> None:
    same = np.ones((3, 4))
    assert np.isfinite(in_batch_negatives(same, ["a", "a", "b"])[1]).all()
    zero = np.zeros((3, 4))
    for loss, gradient in (
        in_batch_negatives(zero, ["a", "a", "b"]),
        cosine_distance(zero, same),
        similarity_distance(zero, same),
        scored_pairs(zero, [(0, 1)], [1.0]),
    ):
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()
