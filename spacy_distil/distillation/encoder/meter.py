"""Training losses and speed since the last log entry."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from accelerate import Accelerator

from spacy_distil.distillation.encoder.objectives import Loss


class Meter:
    """Sums losses on the device, because reading them makes the CPU wait.

    names: of all objectives.
    pieces, seconds: text that went through the models, and the time that it took; the training loop
        adds to them.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = list(names)
        self.sums = torch.zeros(len(self.names), device=device)
        self.positions = np.zeros(len(self.names))
        self.pieces = 0
        self.seconds = 0.0

    def add(self, losses: Mapping[str, Loss]) -> None:
        """Add the losses of a batch."""
        for name, loss in losses.items():
            index = self.names.index(name)
            self.sums[index] += loss.sum.detach()
            self.positions[index] += loss.positions

    def state(self, accelerator: Accelerator) -> list[list[float]]:
        """Sum up all processes, for a checkpoint.

        RETURNS: two lists, sums of losses and numbers of positions, by objective.
        """
        counted = torch.tensor(self.positions, dtype=torch.float32, device=self.sums.device)
        state: list[list[float]] = accelerator.reduce(torch.stack([self.sums, counted])).tolist()
        return state

    def restore(self, state: list[list[float]]) -> None:
        """Continue from a state that `state` returned. Call this in one process only."""
        self.sums.copy_(torch.tensor(state[0]))
        self.positions[:] = state[1]

    def read(self, accelerator: Accelerator) -> tuple[dict[str, float], float]:
        """Read the losses and the speed of all processes, and start again from zero.

        RETURNS: mean losses of the objectives that were computed, and pieces per second.
        """
        started = time.perf_counter()
        sums, positions = self.state(accelerator)
        means = {
            name: total / count
            for name, total, count in zip(self.names, sums, positions, strict=True)
            if count
        }
        self.seconds += time.perf_counter() - started  # the device was still at work
        speed = self.pieces / self.seconds
        self.sums.zero_()
        self.positions[:] = 0
        self.pieces, self.seconds = 0, 0.0
        return means, speed
