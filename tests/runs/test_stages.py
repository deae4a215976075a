"""Steps of a run by stage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacy_distil.errors import ConfigError
from spacy_distil.runs.stages import split_steps


def test_steps_in_proportion_and_in_order() -> None:
    assert split_steps({"a": 1, "b": 3}, 8) == {"a": range(2), "b": range(2, 8)}
    assert split_steps({"only": 0.2}, 5) == {"only": range(5)}
    assert split_steps({"none": 0, "all": 2}, 5) == {"all": range(5)}


@given(
    shares=st.lists(st.integers(0, 100), min_size=1, max_size=6).filter(any),
    n_steps=st.integers(1, 10_000),
)
def test_every_step_is_in_one_stage(shares: list[int], n_steps: int) -> None:
    """Each stage is within a step of its exact share, or the run is refused."""
    named = {str(i): share for i, share in enumerate(shares)}
    try:
        parts = split_steps(named, n_steps)
    except ConfigError:
        parts = {}
    if not parts:  # a share is too small
        assert min(filter(None, shares)) * n_steps <= sum(shares)
        return
    assert [step for part in parts.values() for step in part] == list(range(n_steps))
    assert list(parts) == [name for name, share in named.items() if share]
    for name, part in parts.items():
        assert abs(len(part) - n_steps * named[name] / sum(shares)) <= 1.0001
        assert part


@pytest.mark.parametrize("shares", [{"a": 0.01, "b": 1}, {"b": 1, "a": 0.01}])
def test_a_stage_without_a_step_is_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"stages\.a\.share = 0\.01: of the run's 12 steps none"):
        split_steps(shares, 12)
