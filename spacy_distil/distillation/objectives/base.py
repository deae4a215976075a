"""What an objective is given and what it returns.

An objective is one distillation loss. It declares what it needs (`Needs`), fits itself to two models
or refuses them (`prepare`), and turns what teacher and student made of one batch (`Outputs`) into a
`Loss`. Whatever is costly is computed only where an active objective needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from spacy_distil.distillation.batches import Batch
from spacy_distil.distillation.heads import MaskedLMHead
from spacy_distil.distillation.schedules import Schedule

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Needs:
    """What has to be there before an objective can be computed.

    teacher: the teacher runs on the batch.
    teacher_head, student_head: the model has a masked-LM head.
    masking: it is computed at masked pieces, and at these alone.
    """

    teacher: bool = True
    teacher_head: bool = False
    student_head: bool = False
    masking: bool = False


class Loss(NamedTuple):
    """sum: scalar, with its graph; over positions. positions: how many it is the sum of."""

    sum: Tensor
    positions: int


class Attention(NamedTuple):
    """What one layer's self-attention is computed from, (blocks, length, heads x head size) each,
    the heads side by side.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Encoded:
    """What one model made of a batch.

    last_hidden: (blocks, length, width).
    hidden_states: (blocks, length, width) by number of the layer, 0 being the embeddings and 1 the
        lowest layer's output; only those that an objective asks for.
    attention: by number of the layer, 1 being the lowest; only those that an objective asks for.
    head: the model's masked-LM head, or `None`.
    """

    last_hidden: Tensor
    hidden_states: Mapping[int, Tensor]
    attention: Mapping[int, Attention]
    head: MaskedLMHead | None

    def at(self, rows: Tensor | None) -> Tensor:
        """Last hidden state at some positions.

        rows: (n,) indices into the flattened batch; `None` is all of them. Returns (n, width).
        """
        flat = self.last_hidden.flatten(0, 1)
        return flat if rows is None else flat.index_select(0, rows)

    def vocabulary_features(self, rows: Tensor | None) -> Tensor:
        """Input of the head's decoder at some positions. rows: see `at`. Returns (n, width)."""
        return self.mlm_head.transform(self.at(rows))

    @property
    def mlm_head(self) -> MaskedLMHead:
        """The head, where the objective's `needs` have promised that there is one."""
        if self.head is None:
            raise RuntimeError("this objective's needs must include the model's masked-LM head")
        return self.head


@dataclass(frozen=True)
class Outputs:
    """All that an objective sees of one batch.

    teacher: what the teacher made of it, without gradients; `None` where no objective needs it.
    step: the number of optimizer steps taken before, for schedules.
    """

    teacher: Encoded | None
    student: Encoded
    batch: Batch
    step: int = 0

    @property
    def taught(self) -> Encoded:
        """The teacher's, where the objective's `needs` have promised that it runs."""
        if self.teacher is None:
            raise RuntimeError("this objective's needs must include teacher=True")
        return self.teacher


class Objective(torch.nn.Module):
    """One distillation loss. What it learns itself, such as a projection between widths, are its
    parameters: they are trained and checkpointed with the student, and left out when it is saved.

    weight: factor of this loss in the sum that is minimised; where it is 0 at all steps, the
        objective is switched off.
    needs: what has to be there before it can be computed.
    hidden_pairs: pairs [layer of the student, layer of the teacher] whose hidden states it reads;
        numbers as in `Encoded.hidden_states`. Set by `prepare`.
    attention_pairs: likewise for `Encoded.attention`.
    """

    needs = Needs()
    hidden_pairs: Sequence[tuple[int, int]] = ()
    attention_pairs: Sequence[tuple[int, int]] = ()

    def __init__(self, weight: float | Iterable[float]) -> None:
        super().__init__()
        self.weight = Schedule("weight", weight)

    @property
    def is_active(self) -> bool:
        """Whether there is a step at which it counts."""
        return not (self.weight.is_constant and self.weight.at(0) == 0)

    def prepare(self, teacher: PretrainedConfig, student: PretrainedConfig) -> None:
        """Make it fit two models. Raises `ConfigError` where it cannot compare them.

        It draws from torch's global random generator where it initialises parameters.
        """

    def forward(self, outputs: Outputs) -> Loss:
        """Compute the loss of one batch, unweighted."""
        raise NotImplementedError


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
