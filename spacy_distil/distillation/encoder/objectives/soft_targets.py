"""Soft targets: the teacher's distribution over the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from spacy_distil.distillation.encoder.objectives.base import Needs, Outputs
from spacy_distil.distillation.encoder.objectives.kl_divergence import kl_divergence
from spacy_distil.distillation.encoder.objectives.registry import distil_objectives
from spacy_distil.distillation.encoder.objectives.vocabulary import (
    LogitsLoss,
    VocabularyObjective,
)
from spacy_distil.distillation.encoder.schedules import Schedule
from spacy_distil.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class SoftTargets(VocabularyObjective):
    """KL(teacher || student) of the softened vocabulary distributions, times T squared.

    The factor makes the size of the gradient independent of the temperature (Hinton et al., 2015).

    temperature: T, which divides the logits of both models.

    See `VocabularyObjective` for the other arguments.
    """

    def __init__(
        self,
        weight: float | Iterable[float] = 5.0,
        temperature: float | Iterable[float] = 2.0,
        positions: Literal["masked", "all"] = "masked",
        chunk_rows: int | None = None,
    ) -> None:
        super().__init__(weight, positions, chunk_rows)
        self.temperature = Schedule("temperature", temperature, above=0)
        self.needs = Needs(teacher_head=True, student_head=True, masking=positions == "masked")

    def prepare(self, teacher: PretrainedConfig, student: PretrainedConfig) -> None:
        if teacher.vocab_size != student.vocab_size:
            raise ConfigError(
                f"weight = {self.weight.at(0):g}: must be 0 if the vocabularies differ, since "
                f"distributions over them cannot be compared. The teacher's has "
                f"{teacher.vocab_size} pieces, the student's {student.vocab_size}"
            )

    def on_logits(self, outputs: Outputs) -> tuple[LogitsLoss, Sequence[Tensor]]:
        temperature = self.temperature.at(outputs.step)
        teacher = outputs.target
        # Features and bias are divided, because logits are so much larger.
        head = replace(teacher.mlm_head, bias=teacher.mlm_head.bias / temperature)
        with torch.no_grad():
            features = teacher.vocabulary_features(self.rows(outputs.batch)) / temperature

        def divergence(logits: Tensor, features: Tensor) -> Tensor:
            with torch.no_grad():
                target = head.decode(features)
            softened = logits if temperature == 1 else logits / temperature
            return kl_divergence(target, softened) * temperature**2

        return divergence, [features]


@distil_objectives.register("spacy-distil.SoftTargets.v1")
def make_soft_targets(
    weight: float | Iterator[float] = 5.0,
    temperature: float | Iterator[float] = 2.0,
    positions: Literal["masked", "all"] = "masked",
    chunk_rows: int | None = None,
) -> SoftTargets:
    """Make the objective from a config. See `SoftTargets` for the arguments."""
    return SoftTargets(weight, temperature, positions, chunk_rows)
