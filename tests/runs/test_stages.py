"""Steps of a run by stage."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spacy_distil.runs.stages import split_steps


def test_steps_in_proportion_and_in_order() -> None:
    assert split_steps({"a": 1, "b": 3}, 8) == {"a": range(2), "b": range(2, 8)}
    assert split_steps({"only": 0.2}, 5) == {"only": range(5)}
    assert split_steps({"none": 0, "all": 2}, 5) == {"none": range(0), "all": range(5)}


@given(
    shares=st.lists(st.floats(0, 100), min_size=1, max_size=6).filter(lambda s: sum(s) > 0.01),
    n_steps=st.integers(1, 10_000),
)
def test_every_step_is_in_one_stage(shares: list[float], n_steps: int) -> None:
    """Each stage is within a step of its exact share."""
    parts = split_steps({str(i): share for i, share in enumerate(shares)}, n_steps)
    assert [step for part in parts.values() for step in part] == list(range(n_steps))
    for part, share in zip(parts.values(), shares, strict=True):
        assert abs(len(part) - n_steps * share / sum(shares)) <= 1.0001
