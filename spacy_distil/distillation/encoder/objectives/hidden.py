"""Hidden states: layers of the student imitate the outputs of layers of the teacher."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from spacy_distil.distillation.encoder.objectives.base import (
    Loss,
    Objective,
    Outputs,
    make_projection,
)
from spacy_distil.distillation.encoder.objectives.chunked import at_least_float32
from spacy_distil.distillation.encoder.objectives.registry import distil_objectives
from spacy_distil.students.layer_map import layer_map

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class HiddenStates(Objective):
    """Squared difference of the hidden states of pairs of layers, over all pieces except padding,
    averaged over features and pairs (TinyBERT; Jiao et al., 2020, equations 8 and 9).

    If the widths differ, a learned linear layer for each pair projects the student's states to the
    teacher's.

    weight: factor in the summed loss.
    layers: the pairs, see `layer_map`.
    normalize: whether to normalize both first, each position to mean 0 and variance 1, so that
        layers of different scale count alike. The student is then free in scale and mean.
    """

    def __init__(
        self,
        weight: float | Iterable[float] = 1.0,
        layers: str | Sequence[Sequence[int]] = "even",
        normalize: bool = False,
    ) -> None:
        super().__init__(weight)
        self.layers = layers
        self.normalize = normalize
        self.projections = torch.nn.ModuleList()

    def prepare(self, teacher: PretrainedConfig, student: PretrainedConfig) -> None:
        self.hidden_pairs = layer_map(
            self.layers, student.num_hidden_layers, teacher.num_hidden_layers, name="layers"
        )
        self.projections = torch.nn.ModuleList(
            make_projection(student.hidden_size, teacher.hidden_size) for _ in self.hidden_pairs
        )

    def forward(self, outputs: Outputs) -> Loss:
        rows = outputs.batch.real
        losses = []
        for pair, project in zip(self.hidden_pairs, self.projections, strict=True):
            student_layer, teacher_layer = pair
            prediction = self._scale(project(outputs.student.at(rows, student_layer)))
            target = self._scale(outputs.target.at(rows, teacher_layer))
            losses.append((prediction - target).square().mean(-1).sum())
        return Loss(torch.stack(losses).mean(), outputs.batch.n_real)

    def _scale(self, hidden: Tensor) -> Tensor:
        hidden = at_least_float32(hidden)
        return F.layer_norm(hidden, hidden.shape[-1:]) if self.normalize else hidden


@distil_objectives.register("spacy-distil.HiddenStates.v1")
def make_hidden_states(
    weight: float | Iterator[float] = 1.0,
    layers: Literal["last", "even"] | list[list[int]] = "even",
    normalize: bool = False,
) -> HiddenStates:
    """Make the objective from a config. See `HiddenStates` for the arguments."""
    return HiddenStates(weight, layers, normalize)
