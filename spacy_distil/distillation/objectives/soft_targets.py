"""Soft targets: the teacher's distribution over the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from spacy_distil.distillation.objectives.base import Loss, Needs, Outputs, vocabulary_loss
from spacy_distil.distillation.objectives.registry import at_least, distil_objectives
from spacy_distil.errors import ConfigError


@dataclass(frozen=True)
class SoftTargets:
    """KL(teacher || student) of the softened vocabulary distributions, times T squared.

    The factor keeps the gradient's size independent of the temperature (Hinton et al., 2015).

    weight: factor in the summed loss.
    temperature: T, divides the logits of both.
    positions: "masked", the masked pieces only, or "all", every piece that is not padding.
    chunk_rows: positions whose logits are in memory at once.
    """

    weight: float = 5.0
    temperature: float = 2.0
    positions: Literal["masked", "all"] = "masked"
    chunk_rows: int = 1024

    @property
    def needs(self) -> Needs:
        return Needs(mlm_head=True, masking=self.positions == "masked")

    def check(self, teacher: Any, student: Any) -> None:
        if teacher.vocab_size != student.vocab_size:
            raise ConfigError(
                f"soft targets compare distributions over one vocabulary, but the teacher's has "
                f"{teacher.vocab_size} pieces and the student's {student.vocab_size}"
            )

    def __call__(self, outputs: Outputs) -> Loss:
        batch = outputs.batch
        rows = batch.masked if self.positions == "masked" else batch.real
        teacher, student = outputs.teacher, outputs.student
        with torch.no_grad():
            targets = teacher.vocabulary_features(rows)

        def divergence(logits: Tensor, targets: Tensor) -> Tensor:
            with torch.no_grad():
                logits_taught = teacher.mlm_head.decode(targets).float()
                taught = F.log_softmax(logits_taught / self.temperature, dim=-1)
            learnt = F.log_softmax(logits.float() / self.temperature, dim=-1)
            return F.kl_div(learnt, taught, log_target=True, reduction="sum")

        loss = vocabulary_loss(
            divergence,
            student.vocabulary_features(rows),
            student.mlm_head,
            targets,
            chunk_rows=self.chunk_rows,
        )
        return Loss(loss.mean * self.temperature**2, loss.positions)


@distil_objectives.register("spacy-distil.SoftTargets.v1")
def make_soft_targets(
    weight: float = 5.0,
    temperature: float = 2.0,
    positions: Literal["masked", "all"] = "masked",
    chunk_rows: int = 1024,
) -> SoftTargets:
    """Soft targets as a config names them; see `SoftTargets` for the arguments."""
    at_least("weight", weight, 0)
    at_least("temperature", temperature, 0, exclusive=True)
    at_least("chunk_rows", chunk_rows, 1)
    return SoftTargets(weight, temperature, positions, chunk_rows)
