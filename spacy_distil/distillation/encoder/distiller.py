"""Teacher, student and objectives as one module from a batch to its losses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch

from spacy_distil.distillation.encoder.attention_taps import AttentionTaps
from spacy_distil.distillation.encoder.objectives import Encoded, Loss, Objective, Outputs
from spacy_distil.students.masked_lm_heads import masked_lm_head
from spacy_distil.students.masking import MaskedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Distiller(torch.nn.Module):
    """Computes the losses of one batch.

    The student and the objectives are submodules: they are trained and saved in checkpoints. The
    teacher is not.

    objectives: prepared for these two models.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        objectives: Mapping[str, Objective],
    ) -> None:
        super().__init__()
        self.student = student
        self.objectives = torch.nn.ModuleDict(dict(objectives))
        self._teacher = (teacher,)  # a tuple hides it from torch
        self._taps = [
            AttentionTaps(model, {p[side] for o in objectives.values() for p in o.attention_pairs})
            for side, model in enumerate((student, teacher))
        ]

    def compile_encoders(self) -> None:
        """Let torch compile both encoders when they first run."""
        for model in (self.student, self._teacher[0]):
            model.base_model.compile()  # in place: parameters keep their names

    def objective(self, name: str) -> Objective:
        """The objective of that name."""
        objective = self.objectives[name]
        assert isinstance(objective, Objective)
        return objective

    def encode(
        self, batch: MaskedBatch, step: int = 0, names: Collection[str] | None = None
    ) -> Outputs:
        """Run the student, and the teacher if an objective needs it, on the same input.

        step: number of optimizer steps taken before.
        names: of the objectives to compute; `None` is all.
        """
        active = [self.objective(name) for name in self._chosen(names)]
        student = self._encode(0, self.student, batch, active)
        teacher = None
        if any(o.needs.teacher for o in active):
            with torch.no_grad():
                teacher = self._encode(1, self._teacher[0], batch, active)
        return Outputs(teacher, student, batch, step)

    def losses(self, outputs: Outputs, names: Collection[str] | None = None) -> dict[str, Loss]:
        """Compute the unweighted loss of each objective. names: see `encode`."""
        return {name: self.objective(name)(outputs) for name in self._chosen(names)}

    def forward(
        self, batch: MaskedBatch, step: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Loss]:
        """Run both models and compute the losses. See `encode` for the arguments."""
        return self.losses(self.encode(batch, step, names), names)

    def total(self, means: Mapping[str, torch.Tensor], step: int) -> torch.Tensor:
        """The weighted sum to minimize. means: each objective's mean loss, a scalar."""
        weighted = [self.objective(name).weight.at(step) * mean for name, mean in means.items()]
        return torch.stack(weighted).sum()

    def _chosen(self, names: Collection[str] | None) -> Collection[str]:
        return list(self.objectives) if names is None else names

    def _encode(
        self, side: int, model: PreTrainedModel, batch: MaskedBatch, active: list[Objective]
    ) -> Encoded:
        """Run one model. side: 0 for the student, 1 for the teacher."""
        numbers = {pair[side] for objective in active for pair in objective.hidden_pairs}
        last = int(model.config.num_hidden_layers)
        result = model.base_model(
            input_ids=batch.inputs,
            attention_mask=batch.attention,
            output_hidden_states=bool(numbers - {last}),
            return_dict=True,
        )
        hidden = {
            number: result.last_hidden_state if number == last else result.hidden_states[number]
            for number in numbers
        }
        read = {pair[side] for objective in active for pair in objective.attention_pairs}
        attention = {n: a for n, a in self._taps[side].take().items() if n in read}
        return Encoded(result.last_hidden_state, hidden, attention, masked_lm_head(model))
