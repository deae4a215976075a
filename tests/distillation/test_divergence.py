"""Training that has diverged: which step it was, and which losses have risen too far."""

from __future__ import annotations

import math

import pytest
import torch

from spacy_distil.distillation.divergence import Divergence


def divergence() -> Divergence:
    return Divergence(torch.device("cpu"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_bad_step_is_found_however_late_it_is_looked_for(bad: float) -> None:
    watch = divergence()
    norms = {1: 0.5, 2: 1e30, 3: bad, 4: 0.5, 5: math.nan}
    for step, norm in norms.items():
        watch.note(step, torch.tensor(norm))
        if step < 3:
            assert watch.bad_step() is None
    assert watch.bad_step() == 3


def test_sound_steps_are_none() -> None:
    watch = divergence()
    assert watch.bad_step() is None
    for step in range(1, 50):
        watch.note(step, torch.tensor(float(step)))
    assert watch.bad_step() is None


@pytest.mark.parametrize(
    ("first", "highest"),
    [
        (5.0, 50.0),  # ten times
        (0.05, 1.05),  # where that is little, by 1
        (0.0, 1.0),  # a student that starts as its teacher
    ],
)
def test_a_loss_may_rise_to_ten_times_its_first_value_and_by_one(
    first: float, highest: float
) -> None:
    watch = divergence()
    for loss in (first, first / 2, highest - 1e-6):
        assert watch.worse("stage", {"hidden": loss}) is None
    assert watch.worse("stage", {"hidden": highest + 1e-6}) == "hidden"


def test_each_loss_is_compared_with_its_own_first_value() -> None:
    watch = divergence()
    assert watch.worse("stage", {"hidden": 1.0, "masked_lm": 100.0}) is None
    assert watch.worse("stage", {"hidden": 2.0, "masked_lm": 500.0}) is None
    assert watch.worse("stage", {"hidden": 30.0, "masked_lm": 100.0}) == "hidden"


def test_a_new_stage_starts_anew() -> None:
    watch = divergence()
    assert watch.worse("transfer", {"hidden": 0.1}) is None
    assert watch.worse("predict", {"hidden": 40.0}) is None
    assert watch.worse("predict", {"hidden": 90.0}) is None
    assert watch.worse("predict", {"hidden": 401.0}) == "hidden"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_bad_from_the_first(loss: float) -> None:
    assert divergence().worse("stage", {"masked_lm": 5.0, "hidden": loss}) == "hidden"
