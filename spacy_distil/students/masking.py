"""From blocks of pieces to batches: order, padding and masking.

Everything random here is a pure function of the seed and of a block's place in the run: the same
for a resumed run, and for any number of processes and any size of the batches that go through the
models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# BERT's: of the chosen pieces 80 % become the mask piece, 10 % a random one, 10 % stay.
MASKED, RANDOM = 0.8, 0.1


@dataclass(frozen=True)
class MaskedBatch:
    """Some blocks as teacher and student see them.

    inputs: (blocks, length) int64, ids of the pieces, some of them masked.
    attention: (blocks, length) int64, 1 where a piece is no padding; `None` where none is.
    real: (n,) int64, the flat positions that are no padding; `None` where none is.
    masked: (m,) int64, the flat positions to predict.
    labels: (m,) int64, the true pieces there.
    """

    inputs: Tensor
    attention: Tensor | None
    real: Tensor | None
    masked: Tensor
    labels: Tensor

    @property
    def n_real(self) -> int:
        """How many positions are no padding."""
        return self.inputs.numel() if self.real is None else len(self.real)


@dataclass(frozen=True)
class BlockBatch:
    """Some blocks before masking, as the CPU prepares them ahead of the device.

    Whatever depends on lengths is computed here: finding it out on a GPU would make the CPU wait.

    pieces: (blocks, length) int64.
    places: (blocks,) int64, of the blocks in the run.
    attention, real: see `MaskedBatch`.
    quota: (m,) int64, flat: which of each block's pieces in random order are to be predicted.
    """

    pieces: Tensor
    places: Tensor
    attention: Tensor | None
    real: Tensor | None
    quota: Tensor

    def to(self, device: torch.device) -> BlockBatch:
        """On a GPU this does not wait for the copies to be made."""
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                value = value.pin_memory() if device.type == "cuda" else value
                value = value.to(device, non_blocking=True)
            moved[field.name] = value
        return replace(self, **moved)


class Masking:
    """Dynamic masking; special pieces are neither masked nor put in at random.

    In each block the same share of pieces is predicted, so that how many are is known from the
    blocks' lengths alone. Which they are is drawn on the device. Only a block that has not as many
    ordinary pieces, but unknown ones, predicts some special pieces, and these as they are.

    probability: share of the pieces to predict; 0 leaves the text as it is.
    seed: of all draws.
    mask_id: the mask piece.
    is_special: (vocabulary,) bool.
    ordinary: (v,) int64, ids of all other pieces that the tokenizer has.
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
        return Masking(
            self.probability,
            seed=self.seed,
            mask_id=self.mask_id,
            is_special=self.is_special.to(device),
            ordinary=self.ordinary.to(device),
        )

    def count(self, lengths: np.ndarray) -> np.ndarray:
        """How many pieces of blocks of these lengths are to be predicted."""
        if self.probability == 0:
            return np.zeros_like(lengths)
        return np.maximum(1, np.rint(self.probability * (lengths - 2))).astype(lengths.dtype)

    def __call__(self, rows: BlockBatch, kind: str = "train") -> MaskedBatch:
        """Mask some pieces. kind: of text; each kind has draws of its own."""
        pieces, length = rows.pieces, rows.pieces.shape[1]
        flat = pieces.flatten()
        if not len(rows.quota):
            return MaskedBatch(pieces, rows.attention, rows.real, rows.quota, rows.quota)
        cells = rows.places[:, None] * 2**20 + torch.arange(length, device=pieces.device)
        # 62 random bits. Special pieces come after all others, for blocks that have no more of
        # these, and padding never: there are at least as many pieces as are to be predicted.
        draws = _shift(random_bits(_key(self.seed, kind, "which"), cells), 2)
        draws = draws + (self.is_special[pieces].long() << 62)
        if rows.attention is not None:
            draws = draws.masked_fill(rows.attention == 0, torch.iinfo(torch.int64).max)
        order = draws.argsort(dim=1)
        order += torch.arange(len(pieces), device=pieces.device)[:, None] * length
        masked = order.flatten()[rows.quota].sort().values
        labels = flat[masked]
        fate = random_floats(_key(self.seed, kind, "fate"), cells.flatten()[masked])
        other = random_floats(_key(self.seed, kind, "other"), cells.flatten()[masked])
        new = torch.where(
            fate < MASKED + RANDOM, self.ordinary[(other * len(self.ordinary)).long()], labels
        )
        new = torch.where(fate < MASKED, self.mask_id, new)
        new = torch.where(self.is_special[labels], labels, new)
        inputs = flat.index_copy(0, masked, new).view_as(pieces)
        return MaskedBatch(inputs, rows.attention, rows.real, masked, labels)


def batch_blocks(
    blocks: Sequence[np.ndarray], places: Sequence[int], *, pad_id: int, masking: Masking
) -> BlockBatch:
    """Pad some blocks to the longest. blocks: ids of their pieces. places: see `BlockBatch`."""
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
        places=torch.tensor(places, dtype=torch.int64),
        attention=attention,
        real=real,
        quota=torch.from_numpy(quota.astype(np.int64)),
    )


# Random numbers as a function of a key and a counter: SplitMix64 (Steele, Lea and Flood, 2014,
# "Fast splittable pseudorandom number generators"). torch's own generators are functions of how
# much was drawn before, and differ between devices.
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def random_bits(key: int, counters: Tensor) -> Tensor:
    """counters: int64 of any shape. Returns int64 of the same shape, all 64 bits random."""
    z = (counters + 1) * _signed(_GOLDEN) + _signed(key)
    for shift, factor in _MIX:
        z = (z ^ _shift(z, shift)) * _signed(factor)
    return z ^ _shift(z, 31)


def random_floats(key: int, counters: Tensor) -> Tensor:
    """Likewise float32, uniform in [0, 1)."""
    return _shift(random_bits(key, counters), 40).float() / 2**24


def _shift(z: Tensor, by: int) -> Tensor:
    """To the right, with zeros from the left; torch's own shift repeats the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    """The int64 that has the lowest 64 bits of a number."""
    number &= 2**64 - 1
    return number - 2**64 if number >= 2**63 else number


def _key(*parts: object) -> int:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def seed_for(*key: object) -> int:
    """A seed for torch that depends on nothing but `key`."""
    return _key(*key) % 2**63
