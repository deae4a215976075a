"""Soft targets: the teacher's distribution over the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from spacy_distil.distillation.encoder.objectives.base import Loss, Needs, Objective, Outputs
from spacy_distil.distillation.encoder.objectives.kl_divergence import kl_divergence
from spacy_distil.distillation.encoder.objectives.registry import at_least, distil_objectives
from spacy_distil.distillation.encoder.objectives.vocabulary import vocabulary_loss
from spacy_distil.distillation.encoder.schedules import Schedule
from spacy_distil.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class SoftTargets(Objective):
    """KL(teacher || student) of the softened vocabulary distributions, times T squared.

    The factor makes the size of the gradient independent of the temperature (Hinton et al., 2015).

    weight: factor in the summed loss.
    temperature: T, which divides the logits of both models.
    positions: "masked", the masked pieces only, or "all", every piece that is not padding.
    chunk_rows: positions whose logits are in memory at once.
    """

    def __init__(
        self,
        weight: float | Iterable[float] = 5.0,
        temperature: float | Iterable[float] = 2.0,
        positions: Literal["masked", "all"] = "masked",
        chunk_rows: int = 1024,
    ) -> None:
        super().__init__(weight)
        self.temperature = Schedule("temperature", temperature, above=0)
        self.positions = positions
        self.chunk_rows = at_least("chunk_rows", chunk_rows, 1)
        self.needs = Needs(teacher_head=True, student_head=True, masking=positions == "masked")

    def prepare(self, teacher: PretrainedConfig, student: PretrainedConfig) -> None:
        if teacher.vocab_size != student.vocab_size:
            raise ConfigError(
                f"weight = {self.weight.at(0):g}: must be 0 if the vocabularies differ, since "
                f"distributions over them cannot be compared. The teacher's has "
                f"{teacher.vocab_size} pieces, the student's {student.vocab_size}"
            )

    def forward(self, outputs: Outputs) -> Loss:
        rows = outputs.batch.masked if self.positions == "masked" else outputs.batch.real
        temperature = self.temperature.at(outputs.step)
        teacher, student = outputs.target, outputs.student
        # Features and biases are divided, because logits are so much larger.
        teacher_head, student_head = (
            replace(model.mlm_head, bias=model.mlm_head.bias / temperature)
            for model in (teacher, student)
        )
        with torch.no_grad():
            teacher_features = teacher.vocabulary_features(rows) / temperature

        def divergence(logits: Tensor, teacher_features: Tensor) -> Tensor:
            with torch.no_grad():
                target = teacher_head.decode(teacher_features)
            return kl_divergence(target, logits)

        loss = vocabulary_loss(
            divergence,
            student.vocabulary_features(rows) / temperature,
            student_head,
            teacher_features,
            chunk_rows=self.chunk_rows,
        )
        return Loss(loss.sum * temperature**2, loss.positions)


@distil_objectives.register("spacy-distil.SoftTargets.v1")
def make_soft_targets(
    weight: float | Iterator[float] = 5.0,
    temperature: float | Iterator[float] = 2.0,
    positions: Literal["masked", "all"] = "masked",
    chunk_rows: int = 1024,
) -> SoftTargets:
    """Make the objective from a config. See `SoftTargets` for the arguments."""
    return SoftTargets(weight, temperature, positions, chunk_rows)
