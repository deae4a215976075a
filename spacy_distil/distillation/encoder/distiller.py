"""Teacher, student and objectives as one module: a batch goes in, losses come out."""

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

    Its submodules, which are trained and saved in checkpoints, are the student and the objectives;
    the teacher is neither.

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
        """Let torch make kernels of both encoders when they first run."""
        for model in (self.student, self._teacher[0]):
            model.base_model.compile()  # in place: parameters keep their names

    def objective(self, name: str) -> Objective:
        objective = self.objectives[name]
        assert isinstance(objective, Objective)
        return objective

    def encode(
        self, batch: MaskedBatch, step: int = 0, names: Collection[str] | None = None
    ) -> Outputs:
        """Run the student, and the teacher where it is needed, on the same input.

        names: of the objectives that are to be computed; `None` is all.
        """
        active = [self.objective(name) for name in self._chosen(names)]
        student = self._encode(0, self.student, batch, active)
        teacher = None
        if any(o.needs.teacher for o in active):
            with torch.no_grad():
                teacher = self._encode(1, self._teacher[0], batch, active)
        return Outputs(teacher, student, batch, step)

    def losses(self, outputs: Outputs, names: Collection[str] | None = None) -> dict[str, Loss]:
        """Each objective's loss, unweighted."""
        return {name: self.objective(name)(outputs) for name in self._chosen(names)}

    def forward(
        self, batch: MaskedBatch, step: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Loss]:
        return self.losses(self.encode(batch, step, names), names)

    def total(self, means: Mapping[str, torch.Tensor], step: int) -> torch.Tensor:
        """The weighted sum that is minimised. means: each objective's loss, scalar."""
        weighted = [self.objective(name).weight.at(step) * mean for name, mean in means.items()]
        return torch.stack(weighted).sum()

    def _chosen(self, names: Collection[str] | None) -> Collection[str]:
        return list(self.objectives) if names is None else names

    def _encode(
        self, side: int, model: PreTrainedModel, batch: MaskedBatch, active: list[Objective]
    ) -> Encoded:
        """side: 0 for the student, 1 for the teacher."""
        wanted = {pair[side] for objective in active for pair in objective.hidden_pairs}
        last = int(model.config.num_hidden_layers)
        result = model.base_model(
            input_ids=batch.inputs,
            attention_mask=batch.attention,
            output_hidden_states=bool(wanted - {last}),
            return_dict=True,
        )
        hidden = {
            number: result.last_hidden_state if number == last else result.hidden_states[number]
            for number in wanted
        }
        read = {pair[side] for objective in active for pair in objective.attention_pairs}
        attention = {n: a for n, a in self._taps[side].take().items() if n in read}
        return Encoded(result.last_hidden_state, hidden, attention, masked_lm_head(model))
