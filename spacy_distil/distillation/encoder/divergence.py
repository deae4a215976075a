"""Noticing that training has diverged, without making the CPU wait for the device in each step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

# A loss so many times as high as at the beginning of its stage has diverged; by at least 1, since a
# student that starts as its teacher starts at 0.
WORSE = 10.0


class Divergence:
    """Watches the gradients' norms and the losses of a run.

    Norms are noted on the device, and looked at when the losses are.

    at_first: first values of losses, by stage and name; checkpoints have them.
    """

    def __init__(self, device: torch.device) -> None:
        self._none = torch.iinfo(torch.int64).max
        self._first_bad = torch.full((), self._none, dtype=torch.int64, device=device)
        self.at_first: dict[tuple[str, str], float] = {}

    def note(self, step: int, norm: Tensor) -> None:
        """step: from 1. norm: of all gradients of the step, of all processes; scalar."""
        bad = torch.where(torch.isfinite(norm), self._none, step)
        self._first_bad = torch.minimum(self._first_bad, bad)

    def bad_step(self) -> int | None:
        """The first step whose gradient was not finite. Waits for the device."""
        first = int(self._first_bad)
        return None if first == self._none else first

    def worse(self, stage: str, losses: Mapping[str, float]) -> str | None:
        """The name of a loss that is not finite, or is far above its first value in this stage."""
        for name, loss in losses.items():
            first = self.at_first.setdefault((stage, name), loss)
            if not math.isfinite(loss) or loss > max(WORSE * first, first + 1.0):
                return name
        return None
