"""Masking of pieces, and batches of blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from spacy_distil.students.masking import (
    BlockBatch,
    MaskedBatch,
    Masking,
    batch_blocks,
    random_bits,
    random_floats,
)
from spacy_distil.students.teachers import load_teacher

MASK, SPECIAL, VOCABULARY = 4, [0, 1, 2, 3, 4], 100
IS_SPECIAL = torch.isin(torch.arange(VOCABULARY), torch.tensor(SPECIAL))


def masking(probability: float = 0.15, seed: int = 0) -> Masking:
    return Masking(
        probability,
        seed=seed,
        mask_id=MASK,
        is_special=IS_SPECIAL,
        ordinary=torch.arange(5, VOCABULARY),
    )


def batched(pieces: torch.Tensor, how: Masking, numbers: Sequence[int] | None = None) -> BlockBatch:
    numbers = range(len(pieces)) if numbers is None else numbers
    return batch_blocks(list(pieces.numpy()), numbers, pad_id=0, masking=how)


def text(blocks: int, length: int) -> torch.Tensor:
    """Draw [CLS] pieces [SEP], with a few more [SEP] among the pieces."""
    generator = torch.Generator().manual_seed(3)
    pieces = torch.randint(5, VOCABULARY, (blocks, length), generator=generator)
    pieces[torch.rand(blocks, length, generator=generator) < 0.05] = 3
    pieces[:, 0], pieces[:, -1] = 2, 3
    return pieces


def splitmix64(key: int, counter: int) -> int:
    """Compute one number in Python integers, as Steele, Lea and Flood print the algorithm."""
    limit = 2**64
    z = (key + (counter + 1) * 0x9E3779B97F4A7C15) % limit
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % limit
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % limit
    return z ^ (z >> 31)


@pytest.mark.parametrize("key", [0, 1, 2**63 + 5, 2**64 - 1])
def test_random_bits_are_splitmix64(key: int) -> None:
    counters = torch.tensor([0, 1, 2, 12345, 2**40, 2**62])
    expected = [splitmix64(key, int(c)) for c in counters]
    assert [n % 2**64 for n in random_bits(key, counters).tolist()] == expected


def test_first_random_numbers_of_seed_0_are_the_published_ones() -> None:
    first = [n % 2**64 for n in random_bits(0, torch.arange(3)).tolist()]
    assert first == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_random_floats_are_uniform() -> None:
    draws = random_floats(7, torch.arange(100_000))
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws.numpy(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.02


def test_masking_has_berts_proportions() -> None:
    pieces = text(500, 200)
    batch = masking()(batched(pieces, masking()))
    flat, new = pieces.flatten(), batch.inputs.flatten()
    # The same share of each block, without the special pieces at its ends.
    assert len(batch.masked) == 500 * round(0.15 * 198)
    assert torch.bincount(batch.masked // 200).unique().tolist() == [30]
    assert not torch.isin(flat[batch.masked], torch.tensor(SPECIAL)).any()
    assert torch.equal(batch.labels, flat[batch.masked])
    untouched = torch.ones(len(flat), dtype=torch.bool)
    untouched[batch.masked] = False
    assert torch.equal(flat[untouched], new[untouched])
    became_mask = new[batch.masked] == MASK
    stayed = new[batch.masked] == batch.labels
    assert became_mask.float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert stayed.float().mean().item() == pytest.approx(0.1, abs=0.02)
    others = new[batch.masked][~became_mask & ~stayed]
    assert not torch.isin(others, torch.tensor(SPECIAL)).any()
    assert len(others.unique()) > 80  # any ordinary piece
    # No position in a block is preferred.
    counts = torch.bincount(batch.masked % 200, minlength=200)[1:-1]
    assert counts.min() > 40
    assert counts.max() < 120


def test_no_masking_leaves_text_clean() -> None:
    pieces = text(5, 20)
    batch = masking(0.0)(batched(pieces, masking(0.0)))
    assert torch.equal(batch.inputs, pieces)
    assert len(batch.masked) == len(batch.labels) == 0


def test_masking_for_a_tokenizer_knows_its_special_pieces(teacher_dir: Callable[..., Path]) -> None:
    tokenizer = load_teacher(str(teacher_dir("roberta", head=True))).tokenizer
    how = Masking.for_tokenizer(tokenizer, 0.15, seed=0)
    assert how.mask_id == tokenizer.convert_tokens_to_ids("<mask>")
    special = tokenizer.convert_ids_to_tokens(how.is_special.nonzero().squeeze(1).tolist())
    assert set(special) == {"<s>", "<pad>", "</s>", "<unk>", "<mask>"}
    assert len(how.ordinary) == len(tokenizer) - 5


def test_batch_is_padded_and_labelled() -> None:
    blocks = [np.array([1, 7, 8, 9, 2], dtype=np.uint16), np.array([1, 7, 2], dtype=np.uint16)]
    everything = masking(0.999999)
    batch = everything(batch_blocks(blocks, [0, 1], pad_id=0, masking=everything))
    assert batch.inputs.shape == (2, 5)
    assert batch.attention is not None
    assert batch.real is not None
    assert batch.attention.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.real.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert batch.n_real == 8
    assert batch.masked.tolist() == [1, 2, 3, 6]
    assert batch.labels.tolist() == [7, 8, 9, 7]
    assert batch.inputs[1].tolist()[2:] == [2, 0, 0]
    full = everything(batch_blocks(blocks[:1], [0], pad_id=0, masking=everything))
    assert full.attention is None
    assert full.real is None
    assert full.n_real == 5


def test_masks_depend_only_on_seed_kind_and_number() -> None:
    pieces = text(8, 30)
    together = masking()(batched(pieces, masking(), range(100, 108)))

    def masked_of(batch: MaskedBatch, row: int) -> list[int]:
        return (batch.masked[batch.masked // 30 == row] % 30).tolist()

    for row in range(8):
        alone = masking()(batched(pieces[row : row + 1], masking(), [100 + row]))
        assert masked_of(alone, 0) == masked_of(together, row)
        assert torch.equal(alone.inputs[0], together.inputs[row])
    for other in (
        masking(seed=1)(batched(pieces, masking(), range(100, 108))),
        masking()(batched(pieces, masking(), range(101, 109))),
        masking()(batched(pieces, masking(), range(100, 108)), "held out"),
    ):
        assert not torch.equal(other.masked, together.masked)


def test_count_matches_masked_pieces() -> None:
    lengths = np.array([3, 10, 64, 128])
    how = masking()
    blocks = [np.full(length, 7) for length in lengths]
    batch = how(batch_blocks(blocks, range(4), pad_id=0, masking=how))
    assert torch.bincount(batch.masked // 128).tolist() == how.count(lengths).tolist()
    assert how.count(lengths).tolist() == [1, 1, 9, 19]


def test_blocks_of_unknown_pieces_predict_them_unmasked() -> None:
    """Padding is never predicted, in any batch."""
    blocks = [np.array([2] + [1] * n + [3]) for n in (22, 8)]
    together = masking()(batch_blocks(blocks, [0, 1], pad_id=0, masking=masking()))
    assert torch.equal(together.inputs.flatten()[together.masked], together.labels)
    assert 0 not in together.labels  # padding
    alone = masking()(batch_blocks(blocks[1:], [1], pad_id=0, masking=masking()))
    assert (together.masked[together.masked >= 24] - 24).tolist() == alone.masked.tolist()
