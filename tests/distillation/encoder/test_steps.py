"""Blocks of each step, for any number of processes; stages and learning rates."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from spacy_distil.distillation.encoder.config import (
    EncoderDistilConfig,
    TrainingSettings,
    load_config,
)
from spacy_distil.distillation.encoder.corpus import Mixture
from spacy_distil.distillation.encoder.steps import (
    StepBatches,
    StepBlocks,
    held_out_batches,
    plan_stages,
    plan_steps,
    prefetch,
)
from spacy_distil.errors import ConfigError
from spacy_distil.students.masking import Masking

MASKING = Masking(
    0.15,
    seed=0,
    mask_id=4,
    is_special=torch.arange(100) < 5,
    ordinary=torch.arange(5, 100),
)


class Numbered:
    """Stands for `Blocks`. All pieces of block i are 5 + i, and the last block is shorter."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: Sequence[int]) -> list[np.ndarray]:
        return [
            np.full(length, 5 + row) for row, length in zip(rows, self.lengths(rows), strict=True)
        ]

    def lengths(self, rows: Sequence[int]) -> np.ndarray:
        return np.where(np.array(rows) == self.n - 1, 6, 10)


def step_blocks(n: int, starts: Sequence[int], **settings: Any) -> StepBlocks:
    return StepBlocks(
        Mixture({"": Numbered(n)}),  # type: ignore[dict-item]
        np.array(starts),
        **{"masking": MASKING, "pad_id": 0, "seed": 1, "micro_batch": 2, **settings},
    )


def blocks_of(batches: StepBatches) -> list[int]:
    return [int(row[0]) - 5 for batch in batches.micro_batches for row in batch.pieces]


def test_each_epoch_has_every_block_once_in_its_own_order() -> None:
    blocks = step_blocks(7, range(0, 22, 3))
    seen = [number for step in range(7) for number in blocks_of(blocks[step])]
    epochs = [seen[:7], seen[7:14], seen[14:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert seen == [number for step in range(7) for number in blocks.block_numbers(step)]


def test_a_step_depends_on_its_number_and_the_seed_only() -> None:
    walked = step_blocks(50, range(0, 130, 3))
    for step in range(40):
        late = walked[step]
    jumped = step_blocks(50, range(0, 130, 3))[39]
    for a, b in zip(late.micro_batches, jumped.micro_batches, strict=True):
        assert torch.equal(MASKING(a).inputs, MASKING(b).inputs)
    assert blocks_of(step_blocks(50, range(0, 130, 3), seed=2)[39]) != blocks_of(late)


@pytest.mark.parametrize("micro_batch", [1, 3, 100])
@pytest.mark.parametrize("n_processes", [1, 2, 3])
def test_any_number_of_processes_shares_a_step(n_processes: int, micro_batch: int) -> None:
    """Each block comes once, masked as with one process. All processes know the totals."""

    def inputs(batches: StepBatches) -> list[list[int]]:
        """Without padding, which depends on the micro-batch."""
        rows = [row for batch in batches.micro_batches for row in MASKING(batch).inputs.tolist()]
        return [[piece for piece in row if piece] for row in rows]

    for step in range(3):
        alone = step_blocks(9, [0, 8, 16, 24], micro_batch=8)[step]
        shares = [
            step_blocks(
                9,
                [0, 8, 16, 24],
                micro_batch=micro_batch,
                process=process,
                n_processes=n_processes,
            )[step]
            for process in range(n_processes)
        ]
        assert sorted(n for share in shares for n in blocks_of(share)) == sorted(blocks_of(alone))
        assert sorted(row for share in shares for row in inputs(share)) == sorted(inputs(alone))
        for share in shares:
            assert (share.n_real, share.n_masked) == (alone.n_real, alone.n_masked)
        batches = [MASKING(p) for share in shares for p in share.micro_batches]
        assert sum(batch.n_real for batch in batches) == alone.n_real
        assert sum(len(batch.masked) for batch in batches) == alone.n_masked


def test_masking_is_dynamic() -> None:
    """The same block is masked differently in the next epoch."""
    blocks = step_blocks(1, range(21))
    masks = {tuple(MASKING(blocks[step].micro_batches[0]).masked.tolist()) for step in range(20)}
    assert len(masks) > 2


def test_epochs_or_max_steps_end_a_run_whichever_comes_first() -> None:
    def starts(**settings: Any) -> list[int]:
        return plan_steps(TrainingSettings(**settings), 10).tolist()

    assert starts(epochs=2, batch_size=8) == [0, 8, 16, 24]
    assert starts(epochs=2, batch_size=8, max_steps=2) == [0, 8, 16]
    assert starts(max_steps=3, batch_size=4) == [0, 4, 8, 12]
    assert starts(epochs=0.1, batch_size=1) == [0, 1]


def test_batch_size_may_grow() -> None:
    ramp = {"@schedules": "compounding.v1", "start": 1, "stop": 8, "compound": 2}
    starts = plan_steps(TrainingSettings(epochs=3, batch_size=ramp), 10)
    assert np.diff(starts).tolist() == [1, 2, 4, 8, 8, 8]


def test_a_step_needs_a_block_for_each_process() -> None:
    with pytest.raises(ConfigError, match="at least the number of processes, 4"):
        plan_steps(TrainingSettings(epochs=1, batch_size=3), 10, 4)


def test_held_out_blocks_are_the_same_for_any_number_of_processes() -> None:
    def inputs(n_processes: int, size: int) -> dict[int, list[int]]:
        found = {}
        for process in range(n_processes):
            for rows in held_out_batches(
                Numbered(7),  # type: ignore[arg-type]
                size=size,
                masking=MASKING,
                pad_id=0,
                process=process,
                n_processes=n_processes,
            ):
                batch = MASKING(rows, "held out")
                for place, row in zip(rows.numbers.tolist(), batch.inputs.tolist(), strict=True):
                    found[place] = [piece for piece in row if piece]
        return found

    assert len(inputs(1, 3)) == 7
    assert inputs(1, 3) == inputs(1, 3) == inputs(2, 2) == inputs(3, 5)


def test_prefetch_yields_in_order_and_prepares_the_next() -> None:
    made: list[int] = []
    waited = threading.Event()

    def make(step: int) -> int:
        made.append(step)
        if len(made) == 3:
            waited.set()
        return step

    work = prefetch(make, range(2, 9))  # type: ignore[arg-type]
    first = next(work)
    assert first == 2
    assert waited.wait(5)  # it prepares two more in the meantime
    assert list(work) == [3, 4, 5, 6, 7, 8]  # type: ignore[comparison-overlap]
    assert made == list(range(2, 9))


def test_prefetch_passes_errors_on() -> None:
    def make(step: int) -> StepBatches:
        raise ValueError(f"step {step}")

    with pytest.raises(ValueError, match="step 0"):
        next(prefetch(make, range(3)))


def config(stages: Mapping[str, Any], **training: Any) -> EncoderDistilConfig:
    return load_config(
        {
            "teacher": {"name": "x"},
            "corpus": {"train": "x"},
            "objectives": {
                "a": {"@distil_objectives": "spacy-distil.Cosine.v1"},
                "b": {"@distil_objectives": "spacy-distil.HiddenStates.v1"},
            },
            "stages": stages,
            "training": {"max_steps": 40, "learn_rate": 0.1, "warmup": 0.25, **training},
        }
    )


def test_stages_share_the_steps() -> None:
    first, second = plan_stages(
        config(
            {
                "one": {"objectives": ["b"], "share": 3},
                "two": {"objectives": ["a", "b"], "share": 1, "learn_rate": 0.01},
            }
        ),
        40,
    )
    assert (first.name, first.objectives, first.start, first.end) == ("one", ("b",), 0, 30)
    assert (second.objectives, second.start, second.end) == (("a", "b"), 30, 40)
    assert max(first.rate(step) for step in range(30)) == pytest.approx(0.1)
    assert max(second.rate(step) for step in range(30, 40)) == pytest.approx(0.01)
    assert second.rate(30) == pytest.approx(0.01 / 3)  # each warms up by itself


def test_without_stages_all_objectives_are_summed_from_first_to_last() -> None:
    (only,) = plan_stages(config({}), 40)
    assert (only.objectives, only.start, only.end) == (("a", "b"), 0, 40)


def test_learning_rate_rises_and_falls() -> None:
    (stage,) = plan_stages(config({}), 40)
    rates = [stage.rate(step) / 0.1 for step in range(40)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10:] == pytest.approx([(40 - step) / 30 for step in range(10, 40)])


def test_a_stage_without_steps_is_refused() -> None:
    stages = {
        "one": {"objectives": ["b"], "share": 99},
        "two": {"objectives": ["a"], "share": 0.1},
    }
    with pytest.raises(ConfigError, match=r"stages.two.share = 0.1.*40 steps"):
        plan_stages(config(stages), 40)
