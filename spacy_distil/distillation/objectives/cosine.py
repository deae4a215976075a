"""Cosine: the direction of the last hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F

from spacy_distil.distillation.objectives.base import Loss, Needs, Outputs
from spacy_distil.distillation.objectives.registry import at_least, distil_objectives
from spacy_distil.errors import ConfigError


@dataclass(frozen=True)
class Cosine:
    """1 - cos(teacher, student) of the last hidden states, over every piece but padding.

    weight: factor in the summed loss.
    """

    weight: float = 1.0

    @property
    def needs(self) -> Needs:
        return Needs()

    def check(self, teacher: Any, student: Any) -> None:
        if teacher.hidden_size != student.hidden_size:
            raise ConfigError(
                f"the cosine objective compares hidden states of one width, but the teacher's is "
                f"{teacher.hidden_size} and the student's {student.hidden_size}"
            )

    def __call__(self, outputs: Outputs) -> Loss:
        rows = outputs.batch.real
        taught, learnt = outputs.teacher.at(rows), outputs.student.at(rows)
        similarity = F.cosine_similarity(learnt.float(), taught.float(), dim=-1)
        return Loss((1 - similarity).mean(), rows.shape[0])


@distil_objectives.register("spacy-distil.Cosine.v1")
def make_cosine(weight: float = 1.0) -> Cosine:
    """Cosine as a config names it; see `Cosine` for the arguments."""
    at_least("weight", weight, 0)
    return Cosine(weight)
