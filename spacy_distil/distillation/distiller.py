"""Teacher, student and objectives as one module: a batch goes in, losses come out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from spacy_distil.distillation.batches import Batch
from spacy_distil.distillation.heads import masked_lm_head
from spacy_distil.distillation.objectives import Encoded, Loss, Objective, Outputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Distiller(torch.nn.Module):
    """Computes the losses of one batch.

    The student is its only submodule: the teacher is neither trained, nor put in train mode, nor
    saved in checkpoints.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        objectives: Mapping[str, Objective],
    ) -> None:
        super().__init__()
        self.student = student
        self.objectives = dict(objectives)
        self._teacher = (teacher,)  # a tuple hides it from torch
        self._keep_hidden = any(o.needs.hidden_states for o in self.objectives.values())

    def encode(self, batch: Batch) -> Outputs:
        """Run teacher and student on the same input."""
        with torch.no_grad():
            teacher = self._encode(self._teacher[0], batch)
        return Outputs(teacher, self._encode(self.student, batch), batch)

    def losses(self, outputs: Outputs) -> dict[str, Loss]:
        """Each objective's loss, unweighted."""
        return {name: objective(outputs) for name, objective in self.objectives.items()}

    def forward(self, batch: Batch) -> dict[str, Loss]:
        return self.losses(self.encode(batch))

    def total(self, means: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum that is minimised. means: each objective's loss, scalar."""
        weighted = [self.objectives[name].weight * mean for name, mean in means.items()]
        return torch.stack(weighted).sum()

    def _encode(self, model: PreTrainedModel, batch: Batch) -> Encoded:
        result = model.base_model(
            input_ids=batch.inputs,
            attention_mask=batch.attention,
            output_hidden_states=self._keep_hidden,
            return_dict=True,
        )
        hidden = result.hidden_states if self._keep_hidden else None
        return Encoded(result.last_hidden_state, hidden, masked_lm_head(model))
