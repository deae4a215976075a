"""Bootstrap over documents: how far a score would move on another test set of the same size.

Each score is a function of counts that add up over documents (hits, false alarms, misses). A
resample is therefore a matrix product: the number of draws of each document, times its counts. The
draws depend only on the number of documents and the seed. Two pipelines on the same test set are
resampled with the same documents, so combining their samples one by one is a paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Counts: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
# Totals of shape (n, ...) to scores of shape (n,).
Metric: TypeAlias = Callable[[Floats], Floats]
Interval: TypeAlias = tuple[float, float]

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
# Draws held at once, in numbers of (resample, document) cells: 32 MB of float64.
_CELLS = 4_000_000


def resample(
    metric: Metric, counts: Counts | Floats, *, n: int = RESAMPLES, seed: int = SEED
) -> Floats:
    """Score `n` test sets drawn with replacement from the documents.

    metric: turns totals of shape (n, ...) into scores of shape (n,).
    counts: shape (n_docs, ...), the counts that each document adds to the totals.
    RETURNS: scores of shape (n,).
    """
    n_docs = len(counts)
    if n_docs == 0:
        raise ValueError("Expected the counts of one document or more, got none.")
    rng = np.random.default_rng(seed)
    shares = np.full(n_docs, 1 / n_docs)
    flat = counts.reshape(n_docs, -1).astype(np.float64)
    step = max(1, _CELLS // n_docs)
    scores = []
    for start in range(0, n, step):
        drawn = rng.multinomial(n_docs, shares, size=min(step, n - start))
        totals = drawn.astype(np.float64) @ flat
        scores.append(metric(totals.reshape(len(drawn), *counts.shape[1:])))
    return np.concatenate(scores)


def percentiles(samples: Floats, *, level: float = LEVEL) -> Interval:
    """Find the interval that holds the middle `level` of the samples, of shape (n,)."""
    tail = (1 - level) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def interval(
    metric: Metric,
    counts: Counts,
    *,
    n: int = RESAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> Interval:
    """Compute the percentile bootstrap interval of `metric`. For the arguments see `resample`."""
    return percentiles(resample(metric, counts, n=n, seed=seed), level=level)


def paired_interval(
    metric: Metric,
    counts: Counts,
    reference: Counts,
    *,
    combine: Callable[[Floats, Floats], Floats] = np.subtract,
    n: int = RESAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> Interval:
    """Compute the interval of a comparison of two systems on the same documents.

    counts, reference: counts of the system and of its reference, each of shape (n_docs, ...), with
        the documents in the same order.
    combine: compares two samples: np.subtract for a difference, np.divide for a ratio.
    """
    if len(counts) != len(reference):
        raise ValueError(
            "Paired systems are measured on the same documents: "
            f"got {len(counts)} and {len(reference)}."
        )
    first = resample(metric, counts, n=n, seed=seed)
    second = resample(metric, reference, n=n, seed=seed)
    return percentiles(combine(first, second), level=level)
