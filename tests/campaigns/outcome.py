"""The result of a campaign, and the time that it may take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """The findings of a campaign.

    cases: cases that ran to their end. Fewer than asked for if the time was over.
    failures: one line for each case that broke the promise, with what is needed to repeat it.
    figures: measurements to publish, such as {"seconds": "12.3", "peak": "310 MB"}.
    """

    cases: int = 0
    failures: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)


class Deadline:
    """The moment after which a campaign starts no further case.

    minutes: time from now; None for no limit.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def passed(self) -> bool:
        """Whether the time is over."""
        return self._end is not None and time.monotonic() > self._end
