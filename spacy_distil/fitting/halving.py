"""Which trainings go on: successive halving, and the cheapest student that is good enough.

Successive halving trains all candidates for a part of the steps, drops the worse half, and goes on
(Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", arXiv 1502.07943). Schedules span the whole training, so a candidate that goes on
loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil


def keep_best(scores: Mapping[str, float], share: float) -> list[str]:
    """Keep the share of the names with the highest scores, one at least, in the given order."""
    n = max(1, ceil(share * len(scores)))
    best = sorted(scores, key=lambda name: -scores[name])[:n]
    return [name for name in scores if name in best]


def keep_trade_offs(scores: Mapping[str, float], costs: Mapping[str, float]) -> list[str]:
    """Keep the names that no other one beats in score and cost at once, in the given order.

    costs: less is better.
    """
    return [
        name
        for name in scores
        if not any(
            (scores[other] > scores[name] and costs[other] <= costs[name])
            or (scores[other] >= scores[name] and costs[other] < costs[name])
            for other in scores
        )
    ]


def peel(names: Sequence[str], contains: Callable[[str, str], bool]) -> list[list[str]]:
    """Sort names into fronts: first those that no other one contains, then the same of the rest.

    contains: whether the first name contains the second; a strict partial order.
    """
    left, fronts = list(names), []
    while left:
        front = [name for name in left if not any(contains(other, name) for other in left)]
        fronts.append(front)
        left = [name for name in left if name not in front]
    return fronts


def find_cheapest(
    names: Sequence[str], train: Callable[[str], float], needed: float
) -> tuple[str | None, list[str]]:
    """Find the cheapest name whose score is enough, by bisection.

    It supposes that dearer ones are not worse.

    names: the cheapest first.
    train: returns the score.
    RETURNS: the name, None if the dearest one misses the score, too; and those that were trained.
    """
    low, high, tried = 0, len(names), []
    while low < high:
        middle = (low + high - 1) // 2
        tried.append(names[middle])
        if train(names[middle]) >= needed:
            high = middle
        else:
            low = middle + 1
    return (names[low] if low < len(names) else None), tried


def rung_steps(rungs: Sequence[float], max_steps: int, every: int) -> list[int]:
    """Compute the steps after which candidates are dropped: multiples of `every`, ascending.

    every: steps from one evaluation to the next.
    """
    steps = {max(every, round(share * max_steps / every) * every) for share in rungs}
    return sorted(step for step in steps if step < max_steps)
