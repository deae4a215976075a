"""Losses on the student's distribution over the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from spacy_distil.distillation.encoder.objectives.base import Loss, Objective, Outputs
from spacy_distil.distillation.encoder.objectives.chunked import chunk_size, chunked_sum
from spacy_distil.distillation.encoder.objectives.registry import at_least
from spacy_distil.students.masking import MaskedBatch

# On a CPU, larger chunks are not faster.
CPU_CHUNK_ROWS = 1024

# Called with the logits of a chunk, (chunk, vocabulary), and the chunk's rows of further tensors.
# Returns the sum of the rows' losses, a scalar.
LogitsLoss = Callable[..., Tensor]


class VocabularyObjective(Objective):
    """A loss on the student's logits over the vocabulary.

    Logits are large, so they exist for a chunk of positions at a time. Objectives at the same
    positions share them, see `vocabulary_losses`.

    weight: factor in the summed loss.
    positions: "masked", the masked pieces only, or "all", every piece that is not padding.
    chunk_rows: positions whose logits are in memory at once; `None` chooses by the device.
    """

    def __init__(
        self,
        weight: float | Iterable[float],
        positions: Literal["masked", "all"],
        chunk_rows: int | None,
    ) -> None:
        super().__init__(weight)
        self.positions = positions
        self.chunk_rows = None if chunk_rows is None else at_least("chunk_rows", chunk_rows, 1)

    def rows(self, batch: MaskedBatch) -> Tensor | None:
        """Find the positions in the flattened batch, (n,); `None` is all of them."""
        return batch.masked if self.positions == "masked" else batch.real

    def n_positions(self, batch: MaskedBatch) -> int:
        """Count the positions."""
        return len(batch.masked) if self.positions == "masked" else batch.n_real

    def on_logits(self, outputs: Outputs) -> tuple[LogitsLoss, Sequence[Tensor]]:
        """Return the loss, and the tensors that it needs besides the logits.

        RETURNS (loss, tensors): the tensors have a row for each position. No gradients flow into
            them.
        """
        raise NotImplementedError

    def forward(self, outputs: Outputs) -> Loss:
        total, _ = vocabulary_losses([self], outputs, [1.0])
        return Loss(total, self.n_positions(outputs.batch))


def vocabulary_losses(
    objectives: Sequence[VocabularyObjective], outputs: Outputs, factors: Sequence[float]
) -> tuple[Tensor, list[Tensor]]:
    """Compute several losses on the same logits of the student.

    A chunk's gradient is computed right after its logits, so the losses' factors must be known.

    objectives: with the same `positions`.
    factors: of the objectives in the sum.
    RETURNS (total, sums): the weighted sum, a scalar with its graph; and the sum over positions of
        each objective, without one.
    """
    rows, head = objectives[0].rows(outputs.batch), outputs.student.mlm_head
    compared = [objective.on_logits(outputs) for objective in objectives]
    constant = [tensor for _, tensors in compared for tensor in tensors]
    sums = torch.zeros(len(objectives), device=head.weight.device)

    def weighted(features: Tensor, weight: Tensor, bias: Tensor, *rows: Tensor) -> Tensor:
        logits, remaining, values = F.linear(features, weight, bias), iter(rows), []
        for loss, tensors in compared:
            values.append(loss(logits, *(next(remaining) for _ in tensors)))
        sums.add_(torch.stack(values).detach())
        return torch.stack([f * v for f, v in zip(factors, values, strict=True)]).sum()

    total = chunked_sum(
        weighted,
        [outputs.student.vocabulary_features(rows)],
        whole=[head.weight, head.bias],
        constant=constant,
        size=_chunk_rows(objectives, head.weight),
    )
    return total, list(sums)


def _chunk_rows(objectives: Sequence[VocabularyObjective], weight: Tensor) -> int:
    chosen = [each.chunk_rows for each in objectives if each.chunk_rows is not None]
    return min(chosen, default=vocabulary_rows(weight))


def vocabulary_rows(weight: Tensor) -> int:
    """Choose the number of positions whose logits are in memory at once.

    weight: (n_vocab, n_features), of the decoder.
    """
    return chunk_size(weight.device, bytes_per_row=4 * len(weight), on_cpu=CPU_CHUNK_ROWS)
