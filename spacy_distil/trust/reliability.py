"""Measures of how far probabilities can be believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

N_BINS = 15


@dataclass(frozen=True)
class Reliability:
    """How well probabilities fit what is true.

    n: number of predictions.
    accuracy: share of right predictions, 0 to 1.
    confidence: mean probability of the predictions, 0 to 1.
    ece: expected calibration error in bins of equal width, 0 to 1.
    adaptive_ece: the same in bins of as many predictions.
    brier: Brier score.
    log_loss: mean of -log(probability of the truth), in nats.
    """

    n: int
    accuracy: float
    confidence: float
    ece: float
    adaptive_ece: float
    brier: float
    log_loss: float


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
        brier=brier,
        log_loss=log_loss,
    )


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
    else:  # (0, 1/n], (1/n, 2/n], ...
        bins = np.clip(np.ceil(probabilities * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    gaps = np.bincount(bins, probabilities - right, minlength=n_bins)
    return float(np.abs(gaps).sum() / n)
