"""Masked language modelling: the true pieces at masked positions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch.nn.functional as F
from torch import Tensor

from spacy_distil.distillation.encoder.objectives.base import Loss, Needs, Objective, Outputs
from spacy_distil.distillation.encoder.objectives.chunked import at_least_float32
from spacy_distil.distillation.encoder.objectives.registry import at_least, distil_objectives
from spacy_distil.distillation.encoder.objectives.vocabulary import vocabulary_loss


class MaskedLM(Objective):
    """Cross-entropy of the student against the true pieces at masked positions.

    weight: factor in the summed loss.
    chunk_rows: positions whose logits are in memory at once.
    """

    needs = Needs(teacher=False, student_head=True, masking=True)

    def __init__(self, weight: float | Iterable[float] = 2.0, chunk_rows: int = 1024) -> None:
        super().__init__(weight)
        self.chunk_rows = at_least("chunk_rows", chunk_rows, 1)

    def forward(self, outputs: Outputs) -> Loss:
        def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(at_least_float32(logits), labels, reduction="sum")

        # Soft targets may compute the student's logits, too. At 15 % of the positions, computing
        # them twice costs a few per cent of a step, and keeps the objectives independent.
        return vocabulary_loss(
            cross_entropy,
            outputs.student.vocabulary_features(outputs.batch.masked),
            outputs.student.mlm_head,
            outputs.batch.labels,
            chunk_rows=self.chunk_rows,
        )


@distil_objectives.register("spacy-distil.MaskedLM.v1")
def make_masked_lm(weight: float | Iterator[float] = 2.0, chunk_rows: int = 1024) -> MaskedLM:
    """Make the objective from a config. See `MaskedLM` for the arguments."""
    return MaskedLM(weight, chunk_rows)
