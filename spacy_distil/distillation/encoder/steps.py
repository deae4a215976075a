"""The blocks, objectives and learning rate of each step of a run."""

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
    from spacy_distil.distillation.encoder.corpus import Blocks, Mixture


@dataclass(frozen=True)
class EncoderStage:
    """A part of the run with its own objectives and learning rate.

    objectives: names of the objectives in the sum that is minimized.
    start, end: the first step, and the one after the last, counted from 0.
    learn_rate: the peak. The rate rises linearly over the first `warmup` of the steps, then falls
        linearly to 0.
    warmup: share of the steps, 0 to 1.
    """

    name: str
    objectives: tuple[str, ...]
    start: int
    end: int
    learn_rate: float
    warmup: float

    def rate(self, step: int) -> float:
        """The learning rate of a step, which is above 0 from the first step on."""
        total, done = self.end - self.start, step - self.start
        rising = round(total * self.warmup)
        if done < rising:
            return self.learn_rate * (done + 1) / (rising + 1)
        return self.learn_rate * max(0.0, (total - done) / max(1, total - rising))


def plan_stages(config: EncoderDistilConfig, n_steps: int) -> list[EncoderStage]:
    """Divide the steps of a run among its stages, in the order of the config."""
    stages = config.stages
    steps = split_steps({name: stage.share for name, stage in stages.items()}, n_steps)
    training = config.training
    return [
        EncoderStage(
            name=name,
            objectives=tuple(stage.objectives),
            start=steps[name].start,
            end=steps[name].stop,
            learn_rate=training.learn_rate if stage.learn_rate is None else stage.learn_rate,
            warmup=training.warmup,
        )
        for name, stage in stages.items()
    ]


def plan_steps(settings: TrainingSettings, n_blocks: int, n_processes: int = 1) -> np.ndarray:
    """Compute the first block of each step.

    n_blocks: in an epoch.
    RETURNS: (steps + 1,) int64, the number of blocks before each step, from 0; the last entry is
        the number of blocks in the run.
    """
    schedule = settings.batch_sizes()
    max_blocks = np.inf if settings.epochs is None else settings.epochs * n_blocks
    max_steps = np.inf if settings.max_steps is None else settings.max_steps
    starts = [0]
    while starts[-1] < max_blocks and len(starts) <= max_steps:
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
    """The work of one process in one optimizer step.

    micro_batches: the blocks of this process, in batches that fit into memory.
    n_real, n_masked: positions that are not padding, and positions to predict. Both count the whole
        step: all micro-batches of all processes.
    """

    micro_batches: Sequence[BlockBatch]
    n_real: int
    n_masked: int

    def positions(self, *, masked: bool) -> int:
        """How many positions a loss is averaged over: the masked ones, or all. At least 1."""
        return max(1, self.n_masked if masked else self.n_real)


class StepBlocks:
    """The blocks of a run by step: epoch after epoch, each in a random order of its own. A step may
    straddle two epochs.

    starts: see `plan_steps`.
    micro_batch: blocks in one forward pass.
    process, n_processes: this process takes every n-th block of a step.
    pin: whether batches go to a GPU.
    """

    def __init__(
        self,
        blocks: Mixture,
        starts: np.ndarray,
        *,
        masking: Masking,
        pad_id: int,
        seed: int,
        micro_batch: int,
        process: int = 0,
        n_processes: int = 1,
        pin: bool = False,
    ) -> None:
        self.blocks = blocks
        self.starts = starts
        self.masking = masking
        self.pad_id = pad_id
        self.seed = seed
        self.micro_batch = micro_batch
        self.process = process
        self.n_processes = n_processes
        self.pin = pin
        self._epoch_length = blocks.epoch_length
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def block_numbers(self, step: int) -> list[int]:
        """Numbers of the blocks that all processes take in a step."""
        return [self._block_number(place) for place in range(*self.starts[step : step + 2])]

    def __getitem__(self, step: int) -> StepBatches:
        """The batches of this process in a step."""
        numbers = self.block_numbers(step)
        lengths = self.blocks.lengths(numbers)
        start, end = self.starts[step : step + 2]
        own_places = range(start + self.process, end, self.n_processes)
        own_numbers = numbers[self.process :: self.n_processes]
        micro_batches = []
        for first in range(0, len(own_numbers), self.micro_batch):
            part = slice(first, first + self.micro_batch)
            batch = batch_blocks(
                self.blocks[own_numbers[part]],
                own_places[part],
                pad_id=self.pad_id,
                masking=self.masking,
            )
            micro_batches.append(batch.pin_memory() if self.pin else batch)
        n_masked = int(self.masking.count(lengths).sum())
        return StepBatches(micro_batches, int(lengths.sum()), n_masked)

    def _block_number(self, place: int) -> int:
        """The block at a place in the run."""
        epoch, index = divmod(place, self._epoch_length)
        order = self._order  # another thread may be in another epoch
        if order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_for(self.seed, "order", epoch))
            shuffled = torch.randperm(self._epoch_length, generator=generator).numpy()
            order = epoch, self.blocks.epoch(epoch, seed=self.seed)[shuffled]
            self._order = order
        return int(order[1][index])


def held_out_batches(
    blocks: Blocks, *, size: int, masking: Masking, pad_id: int, process: int, n_processes: int
) -> Iterator[BlockBatch]:
    """Batch a process's share of the held-out blocks, in order. size: blocks in a batch."""
    places = range(process, len(blocks), n_processes)
    for start in range(0, len(places), size):
        part = places[start : start + size]
        yield batch_blocks(blocks[part], part, pad_id=pad_id, masking=masking)


def prefetch(
    make: Callable[[int], StepBatches], steps: range, *, depth: int = 2
) -> Generator[StepBatches, None, None]:
    """Yield `make(step)` for each step. A thread prepares the next ones while the device is busy.

    depth: how many steps are prepared in advance.
    """
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
