"""Distillation like the script published with DistilBERT.

Each row is one sequence, cut at the encoder's maximum length. A batch has rows of similar length by
default, padded to the longest one. Both models compute logits over the whole vocabulary at every
position, padding included, and each loss is read as a number in each step. This module shares no
code with `spacy_distil.distillation`, so that tests can compare the two.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# The label of positions that the cross-entropy ignores.
IGNORED = -100
# Rows whose lengths differ by less are grouped together.
LENGTH_BIN = 4


class Special(NamedTuple):
    """Ids of the special pieces."""

    pad: int
    first: int
    last: int
    mask: int


BERT_SPECIAL = Special(0, 101, 102, 103)


@dataclass(frozen=True)
class PlainSettings:
    """The settings that DistilBERT was published with: the script's defaults, and the weights of
    the losses from its README. One thing differs: all pieces are masked equally often, while the
    script's `mlm_smoothing` masks rare pieces more often.

    restrict_to_mask: whether the student learns soft targets only at masked positions, or at all
        positions that are no padding.
    mask_probability: share of the pieces to predict.
    masked, random: shares of these that become the mask piece, and a random piece.
    clip: maximum norm of the gradient of a step.
    """

    temperature: float = 2.0
    soft_targets: float = 5.0
    masked_lm: float = 2.0
    cosine: float = 1.0
    restrict_to_mask: bool = False
    mask_probability: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    learn_rate: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-6
    weight_decay: float = 0.0
    clip: float = 5.0


class Masked(NamedTuple):
    """The input of both models.

    inputs: (rows, length) int64, some pieces masked.
    attention: (rows, length) int64, 1 for a piece, 0 for padding.
    labels: (rows, length) int64, the true piece at positions to predict, `IGNORED` at others.
    """

    inputs: Tensor
    attention: Tensor
    labels: Tensor


def make_rows(documents: Sequence[np.ndarray], longest: int, special: Special) -> list[np.ndarray]:
    """Make a row `[CLS] pieces [SEP]` of each document, and several of a document that is longer
    than `longest`.
    """
    room = longest - 2
    return [
        np.concatenate([[special.first], document[start : start + room], [special.last]])
        for document in documents
        for start in range(0, len(document), room)
    ]


def make_batches(
    rows: Sequence[np.ndarray], size: int, *, seed: int, by_length: bool = False
) -> list[list[np.ndarray]]:
    """Make batches of `size` rows in random order.

    by_length: whether a batch has rows of similar length. The batches are still in random order.
    """
    rng = random.Random(seed)
    order = list(rows)
    rng.shuffle(order)
    if by_length:
        order.sort(key=lambda row: len(row) // LENGTH_BIN)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    if by_length:
        rng.shuffle(batches)
    return batches


def deal_out(
    batches: Sequence[list[np.ndarray]], steps: int
) -> Iterator[Sequence[list[np.ndarray]]]:
    """Distribute batches over optimizer steps. Their numbers per step differ by at most one."""
    ends = [len(batches) * step // steps for step in range(steps + 1)]
    for start, end in pairwise(ends):
        if start < end:
            yield batches[start:end]


def padded_length(rows: Sequence[np.ndarray], *, bf16: bool) -> int:
    """The length of the longest row. In half precision it is rounded up to a multiple of 8, because
    matrix products are then faster.
    """
    multiple = 8 if bf16 else 1
    return -(-max(map(len, rows)) // multiple) * multiple


def pad(rows: Sequence[np.ndarray], length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad rows. RETURNS: the pieces, (rows, length) int64, and the lengths, (rows,) int64."""
    padded = [[*row.tolist(), *[pad_id] * (length - len(row))] for row in rows]
    return torch.tensor(padded), torch.tensor([len(row) for row in rows])


class PlainLoop:
    """Trains a student step by step."""

    def __init__(
        self,
        teacher: Any,
        student: Any,
        *,
        special: Special,
        settings: PlainSettings = PlainSettings(),
        bf16: bool = False,
    ) -> None:
        """teacher, student: `BertForMaskedLM`, or another model with logits at every position.
        bf16: whether both compute in mixed precision.
        """
        self.teacher = teacher.eval()
        self.student = student.train()
        self.special = special
        self.settings = settings
        self.bf16 = bf16
        self.device: torch.device = next(student.parameters()).device
        self.vocabulary = int(student.config.vocab_size)
        self.is_special = torch.zeros(self.vocabulary, dtype=torch.bool, device=self.device)
        self.is_special[list(special)] = True
        self.optimizer = self._make_optimizer()
        self.last_losses: dict[str, float] = {}
        self.total_loss = 0.0

    def _make_optimizer(self) -> torch.optim.AdamW:
        settings = self.settings
        decayed: list[Tensor] = []
        undecayed: list[Tensor] = []
        for name, parameter in self.student.named_parameters():
            is_decayed = not name.endswith(("bias", "LayerNorm.weight"))
            (decayed if is_decayed else undecayed).append(parameter)
        return torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": undecayed, "weight_decay": 0.0},
            ],
            lr=settings.learn_rate,
            betas=settings.betas,
            eps=settings.epsilon,
        )

    def step(self, batches: Sequence[Sequence[np.ndarray]]) -> None:
        """Take an optimizer step, with a forward pass for each batch."""
        for rows in batches:
            length = padded_length(rows, bf16=self.bf16)
            pieces, lengths = pad(rows, length, self.special.pad)
            masked = self.mask(pieces.to(self.device), lengths.to(self.device))
            self.learn(masked, share=1 / len(batches))
        self.update()

    def mask(self, pieces: Tensor, lengths: Tensor) -> Masked:
        """Choose pieces to predict, anywhere in the batch, and mask them.

        pieces: (rows, length) int64. lengths: (rows,) int64.
        """
        settings = self.settings
        attention = torch.arange(pieces.shape[1], device=self.device) < lengths[:, None]
        odds = (~self.is_special[pieces] & attention).flatten().float()
        count = min(
            int(np.ceil(settings.mask_probability * lengths.sum().item())),
            int(odds.sum().item()),
        )
        chosen = torch.zeros(pieces.numel(), dtype=torch.bool, device=self.device)
        chosen[torch.multinomial(odds, count)] = True
        chosen = chosen.view_as(pieces)
        labels = pieces.masked_fill(~chosen, IGNORED)
        true = pieces[chosen]
        kept = 1 - settings.masked - settings.random
        shares = torch.tensor([settings.masked, settings.random, kept], device=self.device)
        fate = torch.multinomial(shares, len(true), replacement=True)
        other = torch.randint_like(true, self.vocabulary)
        new = torch.where(fate == 0, self.special.mask, torch.where(fate == 1, other, true))
        return Masked(pieces.masked_scatter(chosen, new), attention.long(), labels)

    def losses(self, batch: Masked) -> dict[str, Tensor]:
        """Compute each loss, a scalar without its weight."""
        inputs = {"input_ids": batch.inputs, "attention_mask": batch.attention}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            student = self.student(**inputs, output_hidden_states=True)
            with torch.no_grad():
                teacher = self.teacher(**inputs, output_hidden_states=True)
            return {
                "soft_targets": self._soft_targets(student.logits, teacher.logits, batch),
                "masked_lm": F.cross_entropy(
                    student.logits.view(-1, self.vocabulary), batch.labels.view(-1)
                ),
                "cosine": self._cosine(student.hidden_states[-1], teacher.hidden_states[-1], batch),
            }

    def _soft_targets(self, student: Tensor, teacher: Tensor, batch: Masked) -> Tensor:
        """student, teacher: logits, (rows, length, vocabulary)."""
        t = self.settings.temperature
        restricted = self.settings.restrict_to_mask
        where = batch.labels != IGNORED if restricted else batch.attention.bool()
        mask = where[:, :, None].expand_as(student)
        student = torch.masked_select(student, mask).view(-1, self.vocabulary)
        teacher = torch.masked_select(teacher, mask).view(-1, self.vocabulary)
        divergence = F.kl_div(
            F.log_softmax(student / t, dim=-1),
            F.softmax(teacher / t, dim=-1),
            reduction="batchmean",
        )
        return divergence * t**2

    def _cosine(self, student: Tensor, teacher: Tensor, batch: Masked) -> Tensor:
        """student, teacher: last hidden states, (rows, length, width)."""
        width = student.shape[-1]
        mask = batch.attention.bool()[:, :, None].expand_as(student)
        student = torch.masked_select(student, mask).view(-1, width)
        teacher = torch.masked_select(teacher, mask).view(-1, width)
        target = torch.ones(len(student), device=self.device)
        return F.cosine_embedding_loss(student, teacher, target)

    def learn(self, batch: Masked, share: float = 1.0) -> None:
        """Add to the gradient. share: weight of the batch in the step."""
        losses = self.losses(batch)
        loss = torch.stack(
            [getattr(self.settings, name) * value for name, value in losses.items()]
        ).sum()
        self.last_losses = {name: value.item() for name, value in losses.items()}
        self.last_losses["total"] = loss.item()
        self.total_loss += loss.item()
        if bool(torch.isnan(loss)):
            raise ValueError("The loss is not a number.")
        (loss * share).backward()

    def update(self) -> None:
        """Update the weights with the gradient."""
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
