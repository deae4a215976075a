"""Scores with bootstrap intervals, and their cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

RESAMPLES = 1000


def with_interval(values: Any, compute: Callable[..., float]) -> dict[str, Any]:
    """Compute a score, and its 95 % interval by resampling the rows of `values`.

    RETURNS: "score", and "interval" with its ends.
    """
    rng = np.random.default_rng(0)
    drawn = [compute(values[rng.integers(0, len(values), len(values))]) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"score": compute(values), "interval": (float(low), float(high))}


def percent(values: Any) -> float:
    """Compute the mean of values from 0 to 1, in percent."""
    return 100 * float(values.mean())


def cell(own: dict[str, Any], teacher: dict[str, Any] | None = None) -> str:
    """Write a score with its interval, and with its share of the teacher's."""
    low, high = own["interval"]
    text = f"{own['score']:.1f} [{low:.1f}, {high:.1f}]"
    if teacher is None:
        return text
    kept = 100 * own["score"] / teacher["score"] if teacher["score"] else float("nan")
    return f"{text} ({kept:.1f} %)"
