"""Measures of how far probabilities can be believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

N_BINS = 15


@dataclass(frozen=True)
class Bin:
    """Predictions of similar probability: how many, their mean probability, their accuracy."""

    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Reliability:
    """How well probabilities fit what is true.

    n: number of predictions.
    accuracy: share of right predictions, 0 to 1.
    confidence: mean probability of the predictions, 0 to 1.
    ece: expected calibration error in bins of equal width, 0 to 1.
    adaptive_ece: the same in bins of as many predictions.
    ece_by_chance: `ece` that probabilities without any error would have on so few predictions.
    brier: Brier score.
    log_loss: mean of -log(probability of the truth), in nats.
    bins: the bins of equal width that have predictions, for a reliability diagram.
    coverage: pairs of a share of the predictions, the most probable ones, and their accuracy.
    """

    n: int
    accuracy: float
    confidence: float
    ece: float
    adaptive_ece: float
    ece_by_chance: float
    brier: float
    log_loss: float
    bins: list[Bin]
    coverage: list[tuple[float, float]]


def measure(
    confidence: ArrayLike, correct: ArrayLike, *, brier: float, log_loss: float
) -> Reliability:
    """Measure the reliability of predictions.

    confidence: (n,) probability of each prediction.
    correct: (n,) whether it is right.
    """
    probabilities, right = np.asarray(confidence, dtype="d"), np.asarray(correct, dtype="d")
    n = len(probabilities)
    return Reliability(
        n=n,
        accuracy=float(right.mean()) if n else 0.0,
        confidence=float(probabilities.mean()) if n else 0.0,
        ece=calibration_error(probabilities, right),
        adaptive_ece=calibration_error(probabilities, right, adaptive=True),
        ece_by_chance=error_by_chance(probabilities),
        brier=brier,
        log_loss=log_loss,
        bins=make_bins(probabilities, right),
        coverage=coverage_curve(probabilities, right),
    )


def error_by_chance(confidence: ArrayLike, *, n_bins: int = N_BINS) -> float:
    """Compute the calibration error to expect if every probability is true, 0 to 1.

    The hits in a bin vary around the sum of its probabilities. Their mean distance from it is
    sqrt(2 / pi) standard deviations, if they are normally distributed. With few predictions in a
    bin it is a little more or less.
    """
    probabilities = np.asarray(confidence, dtype="d")
    if not len(probabilities):
        return 0.0
    variances = np.bincount(
        _equal_width(probabilities, n_bins),
        probabilities * (1 - probabilities),
        minlength=n_bins,
    )
    return float(np.sqrt(2 * np.maximum(variances, 0) / np.pi).sum() / len(probabilities))


def make_bins(confidence: ArrayLike, correct: ArrayLike, *, n_bins: int = N_BINS) -> list[Bin]:
    """Divide predictions into bins of equal width. Empty ones are left out."""
    probabilities, right = np.asarray(confidence, dtype="d"), np.asarray(correct, dtype="d")
    bins = _equal_width(probabilities, n_bins)
    counts = np.bincount(bins, minlength=n_bins)
    sums = [np.bincount(bins, each, minlength=n_bins) for each in (probabilities, right)]
    return [
        Bin(int(n), float(own / n), float(hits / n))
        for n, own, hits in zip(counts, *sums, strict=True)
        if n
    ]


def coverage_curve(
    confidence: ArrayLike, correct: ArrayLike, *, n_points: int = 20
) -> list[tuple[float, float]]:
    """Compute the accuracy of the most probable predictions, for shares from 1 / n_points to 1.

    It shows how much accuracy a user gains who checks the least probable ones by hand (El-Yaniv and
    Wiener 2010, "On the Foundations of Noise-free Selective Classification").
    """
    probabilities, right = np.asarray(confidence, dtype="d"), np.asarray(correct, dtype="d")
    n = len(probabilities)
    if not n:
        return []
    hits = np.cumsum(right[np.argsort(-probabilities, kind="stable")])
    sizes = sorted({max(1, round(n * i / n_points)) for i in range(1, n_points + 1)})
    return [(size / n, float(hits[size - 1] / size)) for size in sizes]


def _equal_width(probabilities: np.ndarray, n_bins: int) -> np.ndarray:
    """Return the bin of each probability: (0, 1/n], (1/n, 2/n], ..."""
    bins: np.ndarray = np.clip(np.ceil(probabilities * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    return bins


def calibration_error(
    confidence: ArrayLike, correct: ArrayLike, *, n_bins: int = N_BINS, adaptive: bool = False
) -> float:
    """Compute the expected calibration error, 0 to 1.

    It is the distance between the mean probability and the share of right predictions in a bin,
    averaged over the predictions (Naeini et al. 2015; Guo et al. 2017, equation 3).

    adaptive: bins of as many predictions each, instead of bins of equal width.
    """
    probabilities, right = np.asarray(confidence, dtype="d"), np.asarray(correct, dtype="d")
    n = len(probabilities)
    if not n:
        return 0.0
    if adaptive:
        bins = np.empty(n, dtype=np.int64)
        bins[np.argsort(probabilities, kind="stable")] = np.arange(n) * n_bins // n
    else:
        bins = _equal_width(probabilities, n_bins)
    gaps = np.bincount(bins, probabilities - right, minlength=n_bins)
    return float(np.abs(gaps).sum() / n)
