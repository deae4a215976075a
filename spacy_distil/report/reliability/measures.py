"""Measures of how far probabilities can be believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from spacy_distil.report import bootstrap
from spacy_distil.report.means import MeanScore
from spacy_distil.report.reliability.judged import Judged

N_BINS = 15
# Names of the measures that have intervals.
MEASURES = ("ece", "adaptive_ece", "brier", "log_loss")


@dataclass(frozen=True)
class Bin:
    """Predictions of similar probability: how many, their mean probability, their accuracy."""

    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Reliability:
    """How well the probabilities of a pipe fit what is true.

    Of several seeds, `ece`, `adaptive_ece`, `brier` and `log_loss` are means, and the rest is of
    the first.

    what: what is predicted, in the plural.
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

    what: str
    n: int
    accuracy: float
    confidence: float
    ece: MeanScore
    adaptive_ece: MeanScore
    ece_by_chance: float
    brier: MeanScore
    log_loss: MeanScore
    bins: list[Bin]
    coverage: list[tuple[float, float]]


def measure(seeds: Sequence[Judged], n_docs: int) -> Reliability:
    """Measure the reliability of a pipe.

    seeds: its predictions for the same documents, of each seed.
    n_docs: number of documents, for the intervals: documents are drawn.
    """
    confidence, correct = seeds[0].confidence, seeds[0].correct
    return Reliability(
        what=seeds[0].what,
        n=len(confidence),
        accuracy=_mean(correct),
        confidence=_mean(confidence),
        ece_by_chance=error_by_chance(confidence),
        bins=make_bins(confidence, correct),
        coverage=coverage_curve(confidence, correct),
        **{name: _aggregate(name, seeds, n_docs) for name in MEASURES},
    )


def measure_pipes(seeds: Sequence[Mapping[str, Judged]], n_docs: int) -> dict[str, Reliability]:
    """Measure the pipes that all seeds have. seeds: predictions by name of the pipe. For the rest
    see `measure`.
    """
    first, *others = seeds
    names = [name for name in first if all(name in other for other in others)]
    return {name: measure([seed[name] for seed in seeds], n_docs) for name in names}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _aggregate(name: str, seeds: Sequence[Judged], n_docs: int) -> MeanScore:
    """Average a measure over seeds, with its interval."""
    values, samples = [], []
    for seed in seeds:
        counts, metric = _count(name, seed, n_docs)
        value = float(metric(counts.sum(axis=0)[np.newaxis])[0])
        drawn = bootstrap.resample(metric, counts)
        if metric is _total_gap:
            # Each draw adds chance to the error, which is never negative. Without this shift, an
            # interval could lie above the value that it belongs to.
            drawn = np.maximum(drawn - drawn.mean() + value, 0)
        values.append(value)
        samples.append(drawn)
    return MeanScore.of(values, np.mean(samples, axis=0))


def _count(
    name: str, judged: Judged, n_docs: int
) -> tuple[bootstrap.Floats, Callable[[bootstrap.Floats], bootstrap.Floats]]:
    """Return what each document adds to the totals of a measure, and how to compute it from them.

    RETURNS: (n_docs, ..., 2), the last: a sum and a count.
    """
    if name == "log_loss":
        parts = np.stack([judged.losses, judged.loss_counts], axis=1)
        return _sum_by_doc(judged.loss_docs, parts, n_docs), _ratio
    if name == "brier":
        parts = np.stack([judged.squares, np.ones(len(judged.docs))], axis=1)
        return _sum_by_doc(judged.docs, parts, n_docs), _ratio
    bins = assign_bins(judged.confidence, adaptive=name == "adaptive_ece")
    gaps = judged.confidence - judged.correct
    parts = np.stack([gaps, np.ones(len(gaps))], axis=1)
    counts = _sum_by_doc(judged.docs * N_BINS + bins, parts, n_docs * N_BINS)
    return counts.reshape(n_docs, N_BINS, 2), _total_gap


def _sum_by_doc(rows: np.ndarray, parts: np.ndarray, n_rows: int) -> bootstrap.Floats:
    """parts: (n, 2). RETURNS: (n_rows, 2)."""
    return np.stack([np.bincount(rows, each, minlength=n_rows) for each in parts.T], axis=1)


def _ratio(totals: bootstrap.Floats) -> bootstrap.Floats:
    """totals: (n, 2). RETURNS: (n,), 0 without a count."""
    found: bootstrap.Floats = totals[:, 0] / np.maximum(totals[:, 1], 1)
    return found


def _total_gap(totals: bootstrap.Floats) -> bootstrap.Floats:
    """totals: (n, n_bins, 2). RETURNS: (n,)."""
    n = totals[:, :, 1].sum(axis=1)
    found: bootstrap.Floats = np.abs(totals[:, :, 0]).sum(axis=1) / np.maximum(n, 1)
    return found


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
    bins = assign_bins(probabilities, n_bins=n_bins, adaptive=adaptive)
    gaps = np.bincount(bins, probabilities - right, minlength=n_bins)
    return float(np.abs(gaps).sum() / n)


def assign_bins(
    probabilities: np.ndarray, *, n_bins: int = N_BINS, adaptive: bool = False
) -> np.ndarray:
    """Return the number of the bin of each probability, (n,). For the arguments see
    `calibration_error`.
    """
    if not adaptive:
        return _equal_width(probabilities, n_bins)
    n = len(probabilities)
    bins = np.empty(n, dtype=np.int64)
    bins[np.argsort(probabilities, kind="stable")] = np.arange(n) * n_bins // max(n, 1)
    return bins
