"""Schedules: a number for each step."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import pytest
from thinc.api import compounding, constant_then, decaying, warmup_linear
from thinc.schedules import cyclic_triangular

from spacy_distil.distillation.encoder.schedules import Schedule
from spacy_distil.errors import ConfigError


def test_a_number_is_the_same_at_every_step() -> None:
    schedule = Schedule("weight", 3)
    assert [schedule.at(step) for step in (0, 1, 1000)] == [3.0, 3.0, 3.0]
    assert schedule.is_constant


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (compounding, (1.0, 8.0, 1.3)),
        (decaying, (4.0, 0.1)),
        (warmup_linear, (2.0, 3, 9)),
        (cyclic_triangular, (0.1, 1.0, 4)),  # gives NumPy's numbers
    ],
)
def test_thincs_schedules_by_step(make: Any, arguments: Any) -> None:
    """In any order: a resumed run starts in the middle."""
    expected = [float(value) for value in islice(make(*arguments), 12)]
    schedule = Schedule("weight", make(*arguments))
    assert not schedule.is_constant
    order = [7, 0, 11, 3, 3, 10, *range(12)]
    assert [schedule.at(step) for step in order] == [expected[step] for step in order]
    assert Schedule("weight", make(*arguments)).at(9) == expected[9]


def test_the_last_number_stays_after_a_schedule_ends() -> None:
    numbers: list[Any] = [5, np.float32(0.25)]
    schedule = Schedule("weight", constant_then(1.0, 2, numbers))
    assert [schedule.at(step) for step in range(6)] == [1.0, 1.0, 5.0, 0.25, 0.25, 0.25]
    assert schedule.at(10**6) == 0.25


def test_a_single_number_is_constant() -> None:
    assert Schedule("weight", iter([2.0])).is_constant
    assert not Schedule("weight", iter([2.0, 2.0])).is_constant


@pytest.mark.parametrize("value", ["2", None, [1.0]])
def test_errors_name_a_value_that_is_no_number(value: Any) -> None:
    schedule = Schedule("soft.temperature", iter([1.0, value]))
    assert schedule.at(0) == 1.0
    with pytest.raises(ConfigError, match=r"soft\.temperature: the schedule gave .*not a number"):
        schedule.at(1)


def test_an_empty_schedule_is_named() -> None:
    with pytest.raises(ConfigError, match=r"soft\.weight: the schedule has no numbers"):
        Schedule("soft.weight", iter([]))


@pytest.mark.parametrize(
    ("bounds", "value", "message"),
    [
        ({"at_least": 0}, -0.5, r"^weight = -0\.5: must be at least 0$"),
        ({"at_least": 0}, float("nan"), r"^weight = nan: must be at least 0$"),
        ({"above": 0}, 0, r"^weight = 0: must be above 0$"),
        ({"at_least": 0}, iter([-1.0]), r"^weight = -1: must be at least 0$"),
    ],
)
def test_bounds(bounds: dict[str, float], value: float | Iterable[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule("weight", value, **bounds)


def test_bounds_hold_for_every_step() -> None:
    schedule = Schedule("weight", iter([0.0, 1.0, -1.0]), at_least=0)
    assert (schedule.at(0), schedule.at(1)) == (0.0, 1.0)
    with pytest.raises(ConfigError, match=r"^weight = -1 at step 3: must be at least 0$"):
        schedule.at(5)
