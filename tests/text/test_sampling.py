"""Sampling by temperature, against its definition."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from spacy_distil.errors import ConfigError
from spacy_distil.text.sampling import count_reads, epoch_units, temperature_repeats


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("sizes", [[7], [1000, 10], [3, 3, 3], [1, 100_000, 250, 4]])
def test_shares_follow_the_definition(sizes: list[int], alpha: float) -> None:
    powers = [size**alpha for size in sizes]
    shares = [power / sum(powers) for power in powers]
    total = max(size / share for size, share in zip(sizes, shares, strict=True))
    expected = [total * share / size for size, share in zip(sizes, shares, strict=True)]
    repeats = temperature_repeats(sizes, alpha)
    assert repeats.tolist() == pytest.approx(expected)
    assert repeats.min() == 1.0
    reads = np.array([count_reads(n, r) for n, r in zip(sizes, repeats, strict=True)])
    assert np.abs(reads - total * np.array(shares)).max() <= 0.5 + 1e-6


def test_extremes() -> None:
    sizes = [90, 7, 31]
    assert temperature_repeats(sizes, 1.0).tolist() == [1.0, 1.0, 1.0]
    alike = temperature_repeats(sizes, 0.0)
    assert [count_reads(n, r) for n, r in zip(sizes, alike, strict=True)] == [90, 90, 90]


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"alpha = .*from 0 .* to 1"):
        temperature_repeats([1, 2], alpha)


@pytest.mark.parametrize("sizes", [[], [3, 0]])
def test_a_language_without_units_is_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="each at least 1"):
        temperature_repeats(sizes, 0.5)


@pytest.mark.parametrize(
    ("size", "repeats"), [(10, 1.0), (10, 1.04), (10, 2.5), (7, 3.0), (1, 4.2)]
)
def test_an_epoch_has_full_passes_and_a_part(size: int, repeats: float) -> None:
    reads = count_reads(size, repeats)
    for epoch in range(12):
        units = epoch_units(size, repeats, epoch=epoch, seed=3)
        assert units.dtype == np.int64
        assert len(units) == reads
        times = Counter(units.tolist())
        assert set(times) == set(range(size))
        assert set(times.values()) <= {reads // size, reads // size + 1}


def test_epochs_share_out_the_part_evenly() -> None:
    size, repeats = 10, 1.3
    times: Counter[int] = Counter()
    for epoch in range(10):
        times.update(epoch_units(size, repeats, epoch=epoch, seed=0).tolist())
        assert max(times.values()) - min(times.values()) <= 1
    assert set(times.values()) == {13}


def test_the_part_depends_on_the_seed_alone() -> None:
    def part(seed: int, epoch: int = 0) -> list[int]:
        return epoch_units(1000, 1.01, epoch=epoch, seed=seed)[1000:].tolist()

    assert part(1) == part(1)
    assert part(1) != part(2)
    assert part(1) != part(1, epoch=1)
    assert part(1) != sorted(part(1))  # spread over the language, not its first units
