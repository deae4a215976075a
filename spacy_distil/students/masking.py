"""Turn blocks of pieces into batches: order, padding and masking.

All randomness here is a pure function of the seed and a block's number in the run. So it is the
same in a resumed run, with any number of processes, and with any batch size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# As in BERT: 80 % of the chosen pieces become the mask piece, 10 % a random piece, 10 % stay.
MASKED, RANDOM = 0.8, 0.1


@dataclass(frozen=True)
class MaskedBatch:
    """A batch of blocks as teacher and student see it.

    inputs: (n_blocks, length) int64, piece ids, some of them masked.
    attention: (n_blocks, length) int64, 0 for padding, otherwise 1; `None` without padding.
    real: (n_real,) int64, flat positions without padding; `None` without padding.
    masked: (n_masked,) int64, flat positions to predict.
    labels: (n_masked,) int64, the true pieces there.
    """

    inputs: Tensor
    attention: Tensor | None
    real: Tensor | None
    masked: Tensor
    labels: Tensor

    @property
    def n_real(self) -> int:
        """Number of positions without padding."""
        return self.inputs.numel() if self.real is None else len(self.real)


@dataclass(frozen=True)
class BlockBatch:
    """A batch of blocks before masking, prepared on the CPU ahead of the device.

    Everything that depends on lengths is computed on the CPU: if a GPU computed it, the CPU would
    have to wait for the result.

    pieces: (n_blocks, length) int64.
    numbers: (n_blocks,) int64, the blocks' numbers in the run.
    attention, real: see `MaskedBatch`.
    quota: (n_masked,) int64, flat: ranks of the pieces to predict, after each block's pieces are
        put into random order.
    """

    pieces: Tensor
    numbers: Tensor
    attention: Tensor | None
    real: Tensor | None
    quota: Tensor

    def pin_memory(self) -> BlockBatch:
        """Copy the batch to memory that a GPU reads by itself."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> BlockBatch:
        """Copy the batch to a device. If it is pinned, return before the copies are complete."""
        if device.type == "cpu":
            return self
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, change: Callable[[Tensor], Tensor]) -> BlockBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        present = {name: tensor for name, tensor in values.items() if tensor is not None}
        return replace(self, **{name: change(tensor) for name, tensor in present.items()})


class Masking:
    """Dynamic masking. It neither masks special pieces nor puts them in at random.

    Each block has the same share of pieces to predict, so the number follows from the block's
    length alone. The device draws which pieces. A block with too few ordinary pieces, because many
    are unknown, also predicts some special pieces, which stay in the input as they are.

    probability: share of the pieces to predict; 0 leaves the text as it is.
    seed: of all draws.
    mask_id: id of the mask piece.
    is_special: (n_vocab,) bool.
    ordinary: (n_ordinary,) int64, ids of all other pieces of the tokenizer.
    """

    def __init__(
        self,
        probability: float,
        *,
        seed: int,
        mask_id: int,
        is_special: Tensor,
        ordinary: Tensor,
    ) -> None:
        self.probability = probability
        self.seed = seed
        self.mask_id = mask_id
        self.is_special = is_special
        self.ordinary = ordinary

    @classmethod
    def for_tokenizer(
        cls, tokenizer: PreTrainedTokenizerFast, probability: float, *, seed: int
    ) -> Masking:
        """Make a masking for a tokenizer's mask piece and special pieces."""
        vocabulary = torch.tensor(sorted(tokenizer.get_vocab().values()))
        is_special = torch.zeros(int(vocabulary[-1]) + 1, dtype=torch.bool)
        is_special[list(tokenizer.all_special_ids)] = True
        return cls(
            probability,
            seed=seed,
            mask_id=int(tokenizer.mask_token_id),
            is_special=is_special,
            ordinary=vocabulary[~is_special[vocabulary]],
        )

    def to(self, device: torch.device) -> Masking:
        """Make a copy on a device."""
        return Masking(
            self.probability,
            seed=self.seed,
            mask_id=self.mask_id,
            is_special=self.is_special.to(device),
            ordinary=self.ordinary.to(device),
        )

    def count(self, lengths: np.ndarray) -> np.ndarray:
        """Count the pieces to predict in blocks of these lengths."""
        if self.probability == 0:
            return np.zeros_like(lengths)
        return np.maximum(1, np.rint(self.probability * (lengths - 2))).astype(lengths.dtype)

    def __call__(self, batch: BlockBatch, kind: str = "train") -> MaskedBatch:
        """Mask some pieces of a batch.

        kind: of text. Each kind has its own draws.
        """
        pieces, length = batch.pieces, batch.pieces.shape[1]
        flat = pieces.flatten()
        if not len(batch.quota):
            return MaskedBatch(pieces, batch.attention, batch.real, batch.quota, batch.quota)
        cells = batch.numbers[:, None] * 2**20 + torch.arange(length, device=pieces.device)
        # Sort the pieces by 62 random bits: ordinary pieces first, then special pieces, then
        # padding. A block has at least as many pieces as it predicts, so padding is never masked.
        draws = _shift(random_bits(_key(self.seed, kind, "which"), cells), 2)
        draws = draws + (self.is_special[pieces].long() << 62)
        if batch.attention is not None:
            draws = draws.masked_fill(batch.attention == 0, torch.iinfo(torch.int64).max)
        order = draws.argsort(dim=1)
        order += torch.arange(len(pieces), device=pieces.device)[:, None] * length
        masked = order.flatten()[batch.quota].sort().values
        labels = flat[masked]
        fate = random_floats(_key(self.seed, kind, "fate"), cells.flatten()[masked])
        other = random_floats(_key(self.seed, kind, "other"), cells.flatten()[masked])
        new = torch.where(
            fate < MASKED + RANDOM, self.ordinary[(other * len(self.ordinary)).long()], labels
        )
        new = torch.where(fate < MASKED, self.mask_id, new)
        new = torch.where(self.is_special[labels], labels, new)
        inputs = flat.index_copy(0, masked, new).view_as(pieces)
        return MaskedBatch(inputs, batch.attention, batch.real, masked, labels)


def batch_blocks(
    blocks: Sequence[np.ndarray], numbers: Sequence[int], *, pad_id: int, masking: Masking
) -> BlockBatch:
    """Pad blocks to the longest of them.

    blocks: piece ids, (n_pieces,) each.
    numbers: the blocks' numbers in the run.
    """
    lengths = np.array([len(block) for block in blocks])
    longest = int(lengths.max())
    pieces = np.full((len(blocks), longest), pad_id, dtype=np.int64)
    for row, block in zip(pieces, blocks, strict=True):
        row[: len(block)] = block
    counts = masking.count(lengths)
    attention = real = None
    if lengths.min() < longest:
        attention = torch.from_numpy((np.arange(longest) < lengths[:, None]).astype(np.int64))
        real = attention.flatten().nonzero().squeeze(1)
    starts = np.arange(len(blocks)) * longest
    quota = np.concatenate(
        [start + np.arange(count) for start, count in zip(starts, counts, strict=True)]
    )
    return BlockBatch(
        pieces=torch.from_numpy(pieces),
        numbers=torch.tensor(numbers, dtype=torch.int64),
        attention=attention,
        real=real,
        quota=torch.from_numpy(quota.astype(np.int64)),
    )


# Random numbers as a function of a key and a counter: SplitMix64 (Steele, Lea and Flood, 2014,
# "Fast splittable pseudorandom number generators"). torch's own generators depend on earlier draws
# and on the device.
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def random_bits(key: int, counters: Tensor) -> Tensor:
    """Draw 64 random bits for each counter.

    counters: int64 of any shape.
    RETURNS: int64 of the same shape.
    """
    z = (counters + 1) * _signed(_GOLDEN) + _signed(key)
    for shift, factor in _MIX:
        z = (z ^ _shift(z, shift)) * _signed(factor)
    return z ^ _shift(z, 31)


def random_floats(key: int, counters: Tensor) -> Tensor:
    """Draw a float32, uniform in [0, 1), for each counter. See `random_bits`."""
    return _shift(random_bits(key, counters), 40).float() / 2**24


def _shift(z: Tensor, by: int) -> Tensor:
    """Shift right and fill up with zeros. torch's own shift repeats the sign bit."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    """Reinterpret the lowest 64 bits of a number as int64."""
    number &= 2**64 - 1
    return number - 2**64 if number >= 2**63 else number


def _key(*parts: object) -> int:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def seed_for(*key: object) -> int:
    """Make a seed for torch out of `key` alone."""
    return _key(*key) % 2**63
