"""Which trainings go on, against brute force."""

from __future__ import annotations

import random

import pytest

from spacy_distil.fitting.halving import (
    find_cheapest,
    keep_best,
    keep_trade_offs,
    peel,
    rung_steps,
)


@pytest.mark.parametrize("seed", range(20))
def test_trade_offs_against_all_pairs(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"n{i}" for i in range(rng.randint(1, 9))]
    scores = {name: rng.choice([0.5, 0.6, 0.7, 0.8]) for name in names}
    costs = {name: rng.choice([1.0, 2.0, 3.0]) for name in names}
    kept = keep_trade_offs(scores, costs)

    def beats(a: str, b: str) -> bool:
        no_worse = scores[a] >= scores[b] and costs[a] <= costs[b]
        return no_worse and (scores[a], costs[a]) != (scores[b], costs[b])

    assert kept == [b for b in names if not any(beats(a, b) for a in names)]
    assert kept


def test_the_best_share() -> None:
    scores = {"a": 0.1, "b": 0.4, "c": 0.3, "d": 0.2, "e": 0.35}
    assert keep_best(scores, 0.5) == ["b", "c", "e"]
    assert keep_best(scores, 0.01) == ["b"]
    assert keep_best(scores, 1.0) == [*scores]
    assert keep_best({"a": 0.0, "b": 0.0}, 0.5) == ["a"]


@pytest.mark.parametrize("seed", range(20))
def test_fronts_against_the_longest_chains(seed: int) -> None:
    """A name is in the front of the number of names in the longest chain that contains it."""
    rng = random.Random(seed)
    sizes = {f"n{i}": (rng.randint(0, 2), rng.randint(0, 2)) for i in range(rng.randint(1, 8))}

    def contains(a: str, b: str) -> bool:
        return sizes[a] != sizes[b] and all(x >= y for x, y in zip(sizes[a], sizes[b], strict=True))

    def depth(name: str) -> int:
        return max((1 + depth(other) for other in sizes if contains(other, name)), default=0)

    fronts = peel(list(sizes), contains)
    assert {name: i for i, front in enumerate(fronts) for name in front} == {
        name: depth(name) for name in sizes
    }


@pytest.mark.parametrize("n", range(1, 10))
def test_the_cheapest_by_bisection(n: int) -> None:
    """For all places at which scores become good enough, also for none."""
    names = [str(i) for i in range(n)]
    for first in range(n + 1):
        trained: list[str] = []

        def train(name: str, first: int = first, trained: list[str] = trained) -> float:
            trained.append(name)
            return 1.0 if int(name) >= first else 0.5

        found, tried = find_cheapest(names, train, 0.9)
        assert found == (names[first] if first < n else None)
        assert tried == trained
        assert len(trained) == len({*trained}) <= n.bit_length()
        assert found is None or found in trained


def test_rungs_are_evaluations() -> None:
    assert rung_steps([0.25, 0.5], 1640, 100) == [400, 800]
    assert rung_steps([0.25, 0.5], 1640, 1000) == [1000]
    assert rung_steps([0.01, 0.02], 100, 10) == [10]
    assert rung_steps([0.5, 1.0], 100, 10) == [50]
    assert rung_steps([0.5], 10, 20) == []
