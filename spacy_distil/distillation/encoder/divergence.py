"""Detection of diverged training, without making the CPU wait for the device in each step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

# A loss this many times as high as at the beginning of its stage has diverged, if it has risen by
# at least 1: the loss of a student that starts as its teacher starts at 0.
MAX_RISE = 10.0


class Divergence:
    """Watches the gradients' norms and the losses of a run.

    `note` keeps norms on the device. `bad_step` looks at them when the losses are read.

    first_losses: first values of losses, by stage and name. Checkpoints include them.
    """

    def __init__(self, device: torch.device) -> None:
        self._none = torch.iinfo(torch.int64).max
        self._first_bad = torch.full((), self._none, dtype=torch.int64, device=device)
        self.first_losses: dict[tuple[str, str], float] = {}

    def note(self, step: int, norm: Tensor) -> None:
        """Note the gradient of a step.

        step: from 1.
        norm: scalar, of all gradients of the step, of all processes.
        """
        bad = torch.where(torch.isfinite(norm), self._none, step)
        self._first_bad = torch.minimum(self._first_bad, bad)

    def bad_step(self) -> int | None:
        """The first step whose gradient was not finite. Waits for the device."""
        first = int(self._first_bad)
        return None if first == self._none else first

    def risen_loss(self, stage: str, losses: Mapping[str, float]) -> str | None:
        """The name of a loss that is not finite, or is far above its first value in this stage."""
        for name, loss in losses.items():
            first = self.first_losses.setdefault((stage, name), loss)
            if not math.isfinite(loss) or loss > max(MAX_RISE * first, first + 1.0):
                return name
        return None
