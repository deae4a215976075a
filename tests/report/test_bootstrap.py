from __future__ import annotations

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from spacy_distil.report.bootstrap import (
    Counts,
    Floats,
    interval,
    paired_interval,
    percentiles,
    resample,
)


def ratio(totals: Floats) -> Floats:
    """Of two summed counts."""
    return totals[..., 0] / totals[..., 1]


@pytest.fixture
def counts() -> Counts:
    """Correct tokens and tokens of 60 documents."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(5, 80, size=60)
    return np.stack([rng.binomial(tokens, 0.9), tokens], axis=1)


def test_interval_agrees_with_scipy(counts: Counts) -> None:
    low, high = interval(ratio, counts, n=20_000)
    reference = stats.bootstrap(
        (counts[:, 0], counts[:, 1]),
        lambda correct, tokens, axis=-1: correct.sum(axis=axis) / tokens.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = reference.high - reference.low
    assert low == pytest.approx(reference.low, abs=0.05 * width)
    assert high == pytest.approx(reference.high, abs=0.05 * width)


def test_level_widens_the_interval(counts: Counts) -> None:
    narrow, wide = interval(ratio, counts, level=0.5), interval(ratio, counts, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_paired_interval_agrees_with_scipy(counts: Counts) -> None:
    rng = np.random.default_rng(4)
    better = counts.copy()
    better[:, 0] += rng.binomial(counts[:, 1] - counts[:, 0], 0.3)
    low, high = paired_interval(ratio, better, counts, n=20_000)
    reference = stats.bootstrap(
        (better[:, 0], counts[:, 0], counts[:, 1]),
        lambda new, old, tokens, axis=-1: (
            (new.sum(axis=axis) - old.sum(axis=axis)) / tokens.sum(axis=axis)
        ),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = reference.high - reference.low
    assert low == pytest.approx(reference.low, abs=0.05 * width)
    assert high == pytest.approx(reference.high, abs=0.05 * width)
    # Far narrower than what either score moves by itself: that is what pairing is for.
    alone = interval(ratio, counts)
    assert high - low < 0.7 * (alone[1] - alone[0])


def test_a_system_is_no_better_than_itself(counts: Counts) -> None:
    assert paired_interval(ratio, counts, counts) == (0.0, 0.0)
    assert paired_interval(ratio, counts, counts, combine=np.divide) == (1.0, 1.0)


def test_counts_of_any_shape_are_summed_by_document() -> None:
    counts = np.arange(24).reshape(4, 2, 3)
    samples = resample(lambda totals: totals.sum(axis=(1, 2)), counts, n=500)
    sums = counts.sum(axis=(1, 2))
    possible = {float(a + b + c + d) for a in sums for b in sums for c in sums for d in sums}
    assert samples.shape == (500,)
    assert set(samples) <= possible
    assert len(set(samples)) > 10


def test_the_same_seed_draws_the_same_documents(
    counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resample(ratio, counts, seed=5)
    assert np.array_equal(first, resample(ratio, counts, seed=5))
    assert not np.array_equal(first, resample(ratio, counts, seed=6))
    # The share that is held in memory at once does not matter.
    monkeypatch.setattr("spacy_distil.report.bootstrap._CELLS", 1000)
    assert np.array_equal(first, resample(ratio, counts, seed=5))


def test_percentiles_cut_both_tails() -> None:
    assert percentiles(np.arange(101.0), level=0.9) == pytest.approx((5.0, 95.0))


def test_no_documents_and_unequal_documents_are_refused(counts: Counts) -> None:
    with pytest.raises(ValueError, match="got none"):
        resample(ratio, counts[:0])
    with pytest.raises(ValueError, match="got 60 and 59"):
        paired_interval(ratio, counts, counts[1:])
