"""Which pieces are masked, and which blocks come when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spacy_distil.distillation.batches import (
    Masking,
    TrainingBatches,
    generator_for,
    held_out_batches,
    make_batch,
)
from spacy_distil.distillation.teachers import load_teacher

MASK, SPECIAL, VOCABULARY = 4, [0, 1, 2, 3, 4], 100
MASKING = Masking(0.15, MASK, torch.tensor(SPECIAL), torch.arange(5, VOCABULARY))


class Numbered:
    """Stands for `Blocks`: block i holds nothing but the piece 5 + i."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: Sequence[int]) -> list[np.ndarray]:
        return [np.full(4, 5 + row, dtype=np.int32) for row in rows]


def training_batches(n: int, **settings: Any) -> TrainingBatches:
    return TrainingBatches(
        Numbered(n),  # type: ignore[arg-type]
        **{"batch_size": 3, "masking": MASKING, "pad_id": 0, "seed": 1, **settings},
    )


def test_masking_has_berts_proportions() -> None:
    pieces = torch.randint(0, VOCABULARY, (500, 200))
    inputs, rows = MASKING(pieces, generator_for(0))
    flat, new = pieces.flatten(), inputs.flatten()
    ordinary = int((flat >= 5).sum())
    assert len(rows) / ordinary == pytest.approx(0.15, abs=0.005)
    assert not torch.isin(flat[rows], torch.tensor(SPECIAL)).any()
    untouched = torch.ones(len(flat), dtype=torch.bool)
    untouched[rows] = False
    assert torch.equal(flat[untouched], new[untouched])
    became_mask = new[rows] == MASK
    stayed = new[rows] == flat[rows]
    assert became_mask.float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert stayed.float().mean().item() == pytest.approx(0.1, abs=0.02)
    others = new[rows][~became_mask & ~stayed]
    assert not torch.isin(others, torch.tensor(SPECIAL)).any()
    assert len(others.unique()) > 80  # any ordinary piece


def test_no_masking_leaves_text_clean() -> None:
    pieces = torch.randint(0, VOCABULARY, (5, 20))
    clean = Masking(0.0, MASK, MASKING.special, MASKING.ordinary)
    inputs, rows = clean(pieces, generator_for(0))
    assert torch.equal(inputs, pieces)
    assert len(rows) == 0


def test_masking_of_a_tokenizer_knows_its_special_pieces(teacher_dir: Callable[..., Path]) -> None:
    tokenizer = load_teacher(str(teacher_dir("roberta", head=True))).tokenizer
    masking = Masking.for_tokenizer(tokenizer, 0.15)
    assert masking.mask_id == tokenizer.convert_tokens_to_ids("<mask>")
    special = tokenizer.convert_ids_to_tokens(masking.special.tolist())
    assert set(special) == {"<s>", "<pad>", "</s>", "<unk>", "<mask>"}
    assert len(masking.ordinary) == len(tokenizer) - 5


def test_batch_is_padded_and_labelled() -> None:
    blocks = [np.array([1, 7, 8, 9, 2], dtype=np.int32), np.array([1, 7, 2], dtype=np.int32)]
    everything = Masking(0.999999, MASK, MASKING.special, MASKING.ordinary)
    batch = make_batch(blocks, pad_id=0, masking=everything, generator=generator_for(0))
    assert batch.inputs.shape == (2, 5)
    assert batch.attention.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.real.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert batch.masked.tolist() == [1, 2, 3, 6]
    assert batch.labels.tolist() == [7, 8, 9, 7]
    assert batch.inputs[1].tolist()[2:] == [2, 0, 0]
    full = make_batch(blocks[:1], pad_id=0, masking=everything, generator=generator_for(0))
    assert full.attention is None


def test_each_epoch_has_every_block_once_in_its_own_order() -> None:
    batches = training_batches(7, masking=Masking(0.0, MASK, MASKING.special, MASKING.ordinary))
    seen = [int(row[0]) - 5 for position in range(7) for row in batches[position].inputs]
    epochs = [seen[:7], seen[7:14], seen[14:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_batch_depends_on_its_position_and_the_seed_only() -> None:
    walked = training_batches(50)
    for position in range(40):
        late = walked[position]
    jumped = training_batches(50)[39]
    assert torch.equal(late.inputs, jumped.inputs)
    assert torch.equal(late.masked, jumped.masked)
    other = training_batches(50, seed=2)[39]
    assert not torch.equal(late.inputs, other.inputs)


def test_masking_is_dynamic() -> None:
    """One block, met again in the next epoch, is masked differently."""
    batches = training_batches(
        1, batch_size=1, masking=Masking(0.5, MASK, MASKING.special, MASKING.ordinary)
    )
    assert len({tuple(batches[position].masked.tolist()) for position in range(20)}) > 3


def test_held_out_batches_are_the_same_every_time() -> None:
    def all_inputs() -> list[torch.Tensor]:
        batches = held_out_batches(
            Numbered(7),  # type: ignore[arg-type]
            batch_size=3,
            masking=MASKING,
            pad_id=0,
            seed=0,
        )
        return [batch.inputs for batch in batches]

    first, second = all_inputs(), all_inputs()
    assert [len(inputs) for inputs in first] == [3, 3, 1]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
