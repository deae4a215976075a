"""Cosine: the direction of the last hidden states."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch.nn.functional as F

from spacy_distil.distillation.encoder.objectives.base import (
    Loss,
    Objective,
    Outputs,
    make_projection,
)
from spacy_distil.distillation.encoder.objectives.chunked import at_least_float32
from spacy_distil.distillation.encoder.objectives.registry import distil_objectives

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Cosine(Objective):
    """1 - cos(teacher, student) of the last hidden states, over all pieces except padding.

    If the widths differ, a learned linear layer projects the student's states to the teacher's.

    weight: factor in the summed loss.
    """

    def __init__(self, weight: float | Iterable[float] = 1.0) -> None:
        super().__init__(weight)
        self.projection = make_projection(0, 0)

    def prepare(self, teacher: PretrainedConfig, student: PretrainedConfig) -> None:
        self.projection = make_projection(student.hidden_size, teacher.hidden_size)

    def forward(self, outputs: Outputs) -> Loss:
        batch = outputs.batch
        prediction = self.projection(outputs.student.at(batch.real))
        target = outputs.target.at(batch.real)
        prediction, target = (
            F.normalize(at_least_float32(states), dim=-1) for states in (prediction, target)
        )
        return Loss((1 - (prediction * target).sum(-1)).sum(), batch.n_real)


@distil_objectives.register("spacy-distil.Cosine.v1")
def make_cosine(weight: float | Iterator[float] = 1.0) -> Cosine:
    """Make the objective from a config. See `Cosine` for the arguments."""
    return Cosine(weight)
