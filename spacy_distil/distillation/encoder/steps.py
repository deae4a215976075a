"""Which blocks each step of a run takes, and by which objectives and learning rate it learns."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from spacy_distil.errors import ConfigError
from spacy_distil.runs.stages import split_steps
from spacy_distil.students.masking import BlockBatch, Masking, batch_blocks, seed_for

if TYPE_CHECKING:
    from spacy_distil.distillation.encoder.config import EncoderDistilConfig, TrainingSettings
    from spacy_distil.distillation.encoder.corpus import Blocks


@dataclass(frozen=True)
class Stage:
    """A part of the run with its own objectives and learning rate.

    objectives: names of those that are summed.
    first, end: its steps are `first` to `end - 1`, counted from 0.
    learn_rate: the highest; it rises linearly over the first `warmup` of the steps, then falls
        linearly to 0.
    """

    name: str
    objectives: tuple[str, ...]
    first: int
    end: int
    learn_rate: float
    warmup: float

    def rate(self, step: int) -> float:
        """The learning rate of a step; the first one already learns something."""
        total, done = self.end - self.first, step - self.first
        rising = round(total * self.warmup)
        if done < rising:
            return self.learn_rate * (done + 1) / (rising + 1)
        return self.learn_rate * max(0.0, (total - done) / max(1, total - rising))


def plan_stages(config: EncoderDistilConfig, n_steps: int) -> list[Stage]:
    """Deal the steps of a run out to its stages, in the order of the config."""
    stages = config.stages
    steps = split_steps({name: stage.share for name, stage in stages.items()}, n_steps)
    short = [name for name, part in steps.items() if not part]
    if short:
        raise ConfigError(
            f"stages.{short[0]}.share = {stages[short[0]].share}: of the run's {n_steps} steps "
            f"none is left for it. Train for more steps, or give it a larger share"
        )
    training = config.training
    return [
        Stage(
            name=name,
            objectives=tuple(stage.objectives),
            first=steps[name].start,
            end=steps[name].stop,
            learn_rate=training.learn_rate if stage.learn_rate is None else stage.learn_rate,
            warmup=training.warmup,
        )
        for name, stage in stages.items()
    ]


def plan_steps(settings: TrainingSettings, n_blocks: int, n_processes: int = 1) -> np.ndarray:
    """Where in the run each step begins, counted in blocks: (steps + 1,) int64, from 0."""
    schedule = settings.batch_sizes()
    enough = np.inf if settings.epochs is None else settings.epochs * n_blocks
    most = np.inf if settings.max_steps is None else settings.max_steps
    starts = [0]
    while starts[-1] < enough and len(starts) <= most:
        size = int(schedule.at(len(starts) - 1))
        if size < n_processes:
            raise ConfigError(
                f"training.batch_size is {size} at step {len(starts)}: must be at least 1, and at "
                f"least the number of processes, {n_processes}"
            )
        starts.append(starts[-1] + size)
    return np.array(starts)


@dataclass(frozen=True)
class StepBatches:
    """What one process has to do in one optimizer step.

    micro_batches: its blocks, in portions that fit into memory.
    n_real, n_masked: positions that are no padding, and to be predicted, of the whole step: of all
        portions and processes.
    """

    micro_batches: Sequence[BlockBatch]
    n_real: int
    n_masked: int

    def positions(self, *, masked: bool) -> int:
        return max(1, self.n_masked if masked else self.n_real)


class StepBlocks:
    """The blocks of a run by step: epoch after epoch, each in its own order. A step may straddle
    two epochs.

    starts: see `plan_steps`.
    micro_batch: blocks in one forward pass.
    process, n_processes: every n-th block of a step is this process's.
    """

    def __init__(
        self,
        blocks: Blocks,
        starts: np.ndarray,
        *,
        masking: Masking,
        pad_id: int,
        seed: int,
        micro_batch: int,
        process: int = 0,
        n_processes: int = 1,
    ) -> None:
        self.blocks = blocks
        self.starts = starts
        self.masking = masking
        self.pad_id = pad_id
        self.seed = seed
        self.micro_batch = micro_batch
        self.process = process
        self.n_processes = n_processes
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def rows(self, step: int) -> list[int]:
        """Numbers of the blocks that all processes take in a step."""
        return [self._row(place) for place in range(*self.starts[step : step + 2])]

    def __getitem__(self, step: int) -> StepBatches:
        rows = self.rows(step)
        lengths = self.blocks.lengths(rows)
        first, end = self.starts[step : step + 2]
        places = range(first + self.process, end, self.n_processes)
        mine = rows[self.process :: self.n_processes]
        portions = []
        for start in range(0, len(mine), self.micro_batch):
            part = slice(start, start + self.micro_batch)
            portions.append(
                batch_blocks(
                    self.blocks[mine[part]], places[part], pad_id=self.pad_id, masking=self.masking
                )
            )
        return StepBatches(portions, int(lengths.sum()), int(self.masking.count(lengths).sum()))

    def _row(self, place: int) -> int:
        epoch, index = divmod(place, len(self.blocks))
        order = self._order  # another thread may be in another epoch
        if order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_for(self.seed, "order", epoch))
            order = epoch, torch.randperm(len(self.blocks), generator=generator).numpy()
            self._order = order
        return int(order[1][index])


def held_out_batches(
    blocks: Blocks, *, size: int, masking: Masking, pad_id: int, process: int, n_processes: int
) -> Iterator[BlockBatch]:
    """A process's share of the held-out blocks, in order."""
    mine = range(process, len(blocks), n_processes)
    for start in range(0, len(mine), size):
        places = mine[start : start + size]
        yield batch_blocks(blocks[places], places, pad_id=pad_id, masking=masking)


def prefetch(
    make: Callable[[int], StepBatches], steps: range, *, depth: int = 2
) -> Generator[StepBatches, None, None]:
    """`make(step)` for each step, a few made ahead by a thread while the device is busy."""
    with ThreadPoolExecutor(1, thread_name_prefix="distil-data") as pool:
        waiting: list[Future[StepBatches]] = []
        try:
            for step in steps:
                waiting.append(pool.submit(make, step))
                if len(waiting) > depth:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
