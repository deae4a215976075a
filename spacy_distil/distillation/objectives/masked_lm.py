"""Masked language modelling: the true pieces at masked positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from spacy_distil.distillation.objectives.base import Loss, Needs, Outputs, vocabulary_loss
from spacy_distil.distillation.objectives.registry import at_least, distil_objectives


@dataclass(frozen=True)
class MaskedLM:
    """Cross-entropy of the student against the true pieces at masked positions.

    weight: factor in the summed loss.
    chunk_rows: positions whose logits are in memory at once.
    """

    weight: float = 2.0
    chunk_rows: int = 1024

    @property
    def needs(self) -> Needs:
        return Needs(mlm_head=True, masking=True)

    def check(self, teacher: Any, student: Any) -> None:
        """Any student will do: the teacher is not asked."""

    def __call__(self, outputs: Outputs) -> Loss:
        rows = outputs.batch.masked

        def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(logits.float(), labels, reduction="sum")

        # The student's logits are computed here although soft targets may have computed them too:
        # at 15 % of the positions that costs a few per cent of a step, and the objectives stay
        # independent of each other.
        return vocabulary_loss(
            cross_entropy,
            outputs.student.vocabulary_features(rows),
            outputs.student.mlm_head,
            outputs.batch.labels,
            chunk_rows=self.chunk_rows,
        )


@distil_objectives.register("spacy-distil.MaskedLM.v1")
def make_masked_lm(weight: float = 2.0, chunk_rows: int = 1024) -> MaskedLM:
    """Masked LM as a config names it; see `MaskedLM` for the arguments."""
    at_least("weight", weight, 0)
    at_least("chunk_rows", chunk_rows, 1)
    return MaskedLM(weight, chunk_rows)
