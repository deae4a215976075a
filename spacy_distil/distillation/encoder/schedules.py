"""Settings that may change from step to step. A config names them like spaCy's schedules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from numbers import Real
from typing import Any

from spacy_distil.errors import ConfigError


class Schedule:
    """A number for each step of a run.

    `at` takes the step, so that a resumed run goes on with the numbers of an uninterrupted one.

    setting: dotted name, for errors.
    value: one number for all steps, or a schedule that `@schedules` made: numbers for steps 0, 1,
        2, and so on. After its end, the last number stays.
    at_least, above: bounds. A number outside them raises `ConfigError` when `at` reaches its step;
        the first number does so at once.
    """

    def __init__(
        self,
        setting: str,
        value: float | Iterable[float],
        *,
        at_least: float | None = None,
        above: float | None = None,
    ) -> None:
        self.setting = setting
        self._at_least = at_least
        self._above = above
        self._values: list[float] = []
        self._more: Iterator[Any] = iter((value,) if isinstance(value, int | float) else value)
        self._draw(1)
        if not self._values:
            raise ConfigError(f"{setting}: the schedule has no numbers")

    @property
    def is_constant(self) -> bool:
        """Whether all steps have the same number."""
        self._draw(2)
        return len(self._values) == 1

    def at(self, step: int) -> float:
        """The number for a step. step: number of optimizer steps taken before."""
        self._draw(step + 1)
        return self._values[min(step, len(self._values) - 1)]

    def _draw(self, count: int) -> None:
        """Draw until there are `count` numbers, or until the schedule ends."""
        for value in islice(self._more, max(0, count - len(self._values))):
            if not isinstance(value, Real):
                raise ConfigError(f"{self.setting}: the schedule gave {value!r}, not a number")
            number = float(value)
            # Comparisons are negated because NaN must fail them.
            if self._at_least is not None and not number >= self._at_least:
                raise ConfigError(self._problem(number, f"at least {self._at_least}"))
            if self._above is not None and not number > self._above:
                raise ConfigError(self._problem(number, f"above {self._above}"))
            self._values.append(number)

    def _problem(self, number: float, expected: str) -> str:
        step = len(self._values)
        when = f" at step {step + 1}" if step else ""
        return f"{self.setting} = {number:g}{when}: must be {expected}"
