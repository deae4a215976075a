"""Masked language modelling: the true pieces at masked positions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor

from spacy_distil.distillation.encoder.objectives.base import Needs, Outputs
from spacy_distil.distillation.encoder.objectives.chunked import at_least_float32
from spacy_distil.distillation.encoder.objectives.registry import distil_objectives
from spacy_distil.distillation.encoder.objectives.vocabulary import (
    LogitsLoss,
    VocabularyObjective,
)


class MaskedLM(VocabularyObjective):
    """Cross-entropy of the student against the true pieces at masked positions.

    See `VocabularyObjective` for the arguments.
    """

    needs = Needs(teacher=False, student_head=True, masking=True)

    def __init__(
        self, weight: float | Iterable[float] = 2.0, chunk_rows: int | None = None
    ) -> None:
        super().__init__(weight, "masked", chunk_rows)

    def on_logits(self, outputs: Outputs) -> tuple[LogitsLoss, Sequence[Tensor]]:
        return _cross_entropy, [outputs.batch.labels]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(at_least_float32(logits), labels, reduction="sum")


@distil_objectives.register("spacy-distil.MaskedLM.v1")
def make_masked_lm(
    weight: float | Iterator[float] = 2.0, chunk_rows: int | None = None
) -> MaskedLM:
    """Make the objective from a config. See `MaskedLM` for the arguments."""
    return MaskedLM(weight, chunk_rows)
