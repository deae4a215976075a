"""What an objective is given and what it returns.

An objective is one distillation loss. It declares what it needs (`Needs`), refuses models that it
cannot work with (`check`), and turns what teacher and student made of one batch (`Outputs`) into a
`Loss`. Whatever is costly is computed only where an active objective needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from spacy_distil.distillation.batches import Batch
from spacy_distil.distillation.heads import MaskedLMHead


@dataclass(frozen=True)
class Needs:
    """What has to be there before an objective can be computed.

    mlm_head: teacher and student have a masked-LM head.
    masking: some pieces of the input are masked.
    hidden_states: `Encoded.hidden_states`, the output of every layer, is kept.
    """

    mlm_head: bool = False
    masking: bool = False
    hidden_states: bool = False


class Loss(NamedTuple):
    """mean: scalar, with its graph. positions: how many it is the mean of."""

    mean: Tensor
    positions: int


@dataclass(frozen=True)
class Encoded:
    """What one model made of a batch.

    last_hidden: (blocks, length, width).
    hidden_states: embeddings and every layer's output, (blocks, length, width) each, or `None`
        where no objective needs them.
    head: the model's masked-LM head, or `None`.
    """

    last_hidden: Tensor
    hidden_states: tuple[Tensor, ...] | None
    head: MaskedLMHead | None

    def at(self, rows: Tensor) -> Tensor:
        """Last hidden state at some positions.

        rows: (n,) indices into the flattened batch. Returns (n, width).
        """
        return self.last_hidden.flatten(0, 1).index_select(0, rows)

    def vocabulary_features(self, rows: Tensor) -> Tensor:
        """Input of the head's decoder at some positions. rows: (n,). Returns (n, width)."""
        return self.mlm_head.transform(self.at(rows))

    @property
    def mlm_head(self) -> MaskedLMHead:
        """The head, where the objective's `needs` have promised that there is one."""
        if self.head is None:
            raise RuntimeError("this objective's needs must include mlm_head=True")
        return self.head


@dataclass(frozen=True)
class Outputs:
    """All that an objective sees of one batch."""

    teacher: Encoded
    student: Encoded
    batch: Batch


class Objective(Protocol):
    """One distillation loss."""

    @property
    def weight(self) -> float:
        """Factor of this loss in the sum that is minimised; 0 switches the objective off."""

    @property
    def needs(self) -> Needs:
        """What has to be there before it can be computed."""

    def check(self, teacher: Any, student: Any) -> None:
        """Raise `ConfigError` where these models cannot be compared by this objective.

        teacher, student: the models' transformers configs.
        """

    def __call__(self, outputs: Outputs) -> Loss:
        """Compute the loss of one batch."""


class _ChunkedSum(torch.autograd.Function):
    """Sum of a row-wise loss over vocabulary logits, one chunk of rows at a time.

    Each chunk's gradient is computed right after its loss, while its logits are at hand: nothing of
    vocabulary size outlives its chunk, forward or backward, and no logits are computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss: Callable[..., Tensor],
        chunk_rows: int,
        with_gradient: bool,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        *rows: Tensor,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=features.device)
        leaves = [t.detach().requires_grad_(with_gradient) for t in (weight, bias)]
        d_features = torch.empty_like(features) if with_gradient else None
        d_leaves = [torch.zeros_like(t) for t in leaves] if with_gradient else []
        for start in range(0, features.shape[0], chunk_rows):
            chunk = slice(start, start + chunk_rows)
            part = features[chunk].detach().requires_grad_(with_gradient)
            with torch.set_grad_enabled(with_gradient):
                logits = torch.nn.functional.linear(part, *leaves)
                value = loss(logits, *(row[chunk] for row in rows))
            total += value.detach()
            if d_features is not None:
                d_part, *d_chunk = torch.autograd.grad(value, [part, *leaves])
                d_features[chunk] = d_part
                for d_leaf, d in zip(d_leaves, d_chunk, strict=True):
                    d_leaf += d
        if d_features is not None:
            ctx.save_for_backward(d_features, *d_leaves)
        return total

    @staticmethod
    def backward(ctx: Any, *d_total: Tensor) -> tuple[Tensor | None, ...]:
        d_features, d_weight, d_bias = ctx.saved_tensors
        d_inputs = (d * d_total[0] for d in (d_features, d_weight, d_bias))
        return (None, None, None, *d_inputs, *(None for _ in ctx.needs_input_grad[6:]))


def vocabulary_loss(
    loss: Callable[..., Tensor],
    features: Tensor,
    head: MaskedLMHead,
    *rows: Tensor,
    chunk_rows: int,
) -> Loss:
    """Mean over rows of a loss on vocabulary logits, in memory for `chunk_rows` rows of them.

    loss: called with the logits of a chunk, (chunk, vocabulary), and the same rows of each of
        `rows`; returns the sum of the rows' losses as a float32 scalar.
    features: (n, width), see `Encoded.vocabulary_features`; gradients flow into them.
    head: whose decoder makes the logits; gradients flow into it.
    rows: tensors of n rows that `loss` needs beside the logits; no gradients flow into them.
    """
    count = features.shape[0]
    if count == 0:
        return Loss(features.float().sum(), 0)  # zero, and still a node of the student's graph
    total = _ChunkedSum.apply(
        loss, chunk_rows, torch.is_grad_enabled(), features, head.weight, head.bias, *rows
    )
    return Loss(total / count, count)
