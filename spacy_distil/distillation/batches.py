"""From blocks of pieces to batches: order, padding and masking.

Everything random here is a pure function of the seed and of a batch's position in the run, so that
a resumed run goes on with exactly the batches that it would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from spacy_distil.distillation.corpus import Blocks

# BERT's: of the chosen pieces 80 % become the mask piece, 10 % a random one, 10 % stay.
MASKED, RANDOM = 0.8, 0.1


@dataclass(frozen=True)
class Batch:
    """Some blocks as teacher and student see them.

    Positions that objectives select are computed here, on the CPU: finding them on a GPU would
    make the CPU wait for it in every step.

    inputs: (blocks, length) int64, ids of the pieces, some of them masked.
    attention: (blocks, length) int64, 1 where a piece is no padding; `None` where none is.
    real: (n,) int64, the flat positions that are no padding.
    masked: (m,) int64, the flat positions to predict.
    labels: (m,) int64, the true pieces there.
    """

    inputs: Tensor
    attention: Tensor | None
    real: Tensor
    masked: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and device.type != "cpu":
                value = value.pin_memory() if device.type == "cuda" else value
                value = value.to(device, non_blocking=True)
            moved[field.name] = value
        return replace(self, **moved)


@dataclass(frozen=True)
class Masking:
    """Dynamic masking; special pieces are neither masked nor put in at random.

    probability: share of the ordinary pieces to predict; 0 leaves the text as it is.
    mask_id: the mask piece.
    special: (s,) ids of the special pieces.
    ordinary: (v,) ids of all other pieces.
    """

    probability: float
    mask_id: int
    special: Tensor
    ordinary: Tensor

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerFast, probability: float) -> Masking:
        special = torch.tensor(sorted(tokenizer.all_special_ids))
        vocabulary = torch.tensor(sorted(tokenizer.get_vocab().values()))
        ordinary = vocabulary[~torch.isin(vocabulary, special)]
        return cls(probability, int(tokenizer.mask_token_id), special, ordinary)

    def __call__(self, pieces: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mask some pieces. pieces: (blocks, length). Returns the same, masked, and the flat
        positions, (m,), to predict."""
        if self.probability == 0:
            return pieces, torch.empty(0, dtype=torch.int64)
        draw = torch.rand(pieces.shape, generator=generator)
        chosen = (draw < self.probability) & ~torch.isin(pieces, self.special)
        rows = chosen.flatten().nonzero().squeeze(1)
        fate = torch.rand(rows.shape, generator=generator)
        random = self.ordinary[torch.randint(len(self.ordinary), rows.shape, generator=generator)]
        flat = pieces.flatten()
        new = torch.where(fate < MASKED + RANDOM, random, flat[rows])
        new = torch.where(fate < MASKED, self.mask_id, new)
        return flat.index_copy(0, rows, new).view_as(pieces), rows


def make_batch(
    blocks: Sequence[np.ndarray],
    *,
    pad_id: int,
    masking: Masking,
    generator: torch.Generator,
) -> Batch:
    """Pad some blocks to the longest and mask them. blocks: ids of their pieces."""
    rows = [torch.from_numpy(block.astype(np.int64)) for block in blocks]
    pieces = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
    lengths = torch.tensor([len(row) for row in rows])
    attention = (torch.arange(pieces.shape[1]) < lengths[:, None]).long()
    inputs, masked = masking(pieces, generator)
    return Batch(
        inputs=inputs,
        attention=None if bool(attention.all()) else attention,
        real=attention.flatten().nonzero().squeeze(1),
        masked=masked,
        labels=pieces.flatten()[masked],
    )


def generator_for(*key: object) -> torch.Generator:
    """A random generator that depends on nothing but `key`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class TrainingBatches:
    """The training batches of a whole run, by position.

    Epoch after epoch, each in its own order; a batch may straddle two epochs, so that all batches
    have the same number of blocks. This is no `DataLoader`: one would draw from torch's global
    generator when it starts, and so change the dropout of a resumed run.
    """

    def __init__(
        self, blocks: Blocks, *, batch_size: int, masking: Masking, pad_id: int, seed: int
    ) -> None:
        self.blocks = blocks
        self.batch_size = batch_size
        self.masking = masking
        self.pad_id = pad_id
        self.seed = seed
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def __getitem__(self, position: int) -> Batch:
        first = position * self.batch_size
        rows = [self._row(place) for place in range(first, first + self.batch_size)]
        return make_batch(
            self.blocks[rows],
            pad_id=self.pad_id,
            masking=self.masking,
            generator=generator_for(self.seed, "mask", position),
        )

    def _row(self, place: int) -> int:
        epoch, index = divmod(place, len(self.blocks))
        if self._order[0] != epoch:
            generator = generator_for(self.seed, "order", epoch)
            self._order = epoch, torch.randperm(len(self.blocks), generator=generator)
        return int(self._order[1][index])


def held_out_batches(
    blocks: Blocks, *, batch_size: int, masking: Masking, pad_id: int, seed: int
) -> Iterator[Batch]:
    """The held-out blocks in order, masked the same way at every evaluation."""
    for start in range(0, len(blocks), batch_size):
        yield make_batch(
            blocks[range(start, min(start + batch_size, len(blocks)))],
            pad_id=pad_id,
            masking=masking,
            generator=generator_for(seed, "held out", start),
        )
