"""Teacher, student and objectives as one module from a batch to its losses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from spacy_distil.distillation.encoder.attention_taps import AttentionTaps
from spacy_distil.distillation.encoder.objectives import (
    Encoded,
    Loss,
    Objective,
    Outputs,
    VocabularyObjective,
    vocabulary_losses,
)
from spacy_distil.students.masked_lm_heads import masked_lm_head
from spacy_distil.students.masking import MaskedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Losses(NamedTuple):
    """The losses of a batch.

    total: the weighted sum to minimize, a scalar with its graph.
    parts: the unweighted loss of each objective, without a graph.
    """

    total: Tensor
    parts: dict[str, Loss]


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
        # Whether anyone reads inner layers, in whatever stage: torch would compile a model again if
        # it returned them in some stages only.
        self._returns_layers = [
            any(
                pair[side] != model.config.num_hidden_layers
                for objective in objectives.values()
                for pair in objective.hidden_pairs
            )
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
            # Its weights have the precision of its products. Autocast would compute layer norms in
            # float32, and hand on all hidden states in it.
            with torch.no_grad(), torch.autocast(batch.inputs.device.type, enabled=False):
                teacher = self._encode(1, self._teacher[0], batch, active)
        return Outputs(teacher, student, batch, step)

    def losses(
        self,
        outputs: Outputs,
        names: Collection[str] | None = None,
        positions: Mapping[str, int] | None = None,
    ) -> Losses:
        """Compute the losses of some objectives, and their sum.

        names: see `encode`.
        positions: the number that an objective's sum is divided by, by name; `None` divides by the
            positions of the batch.
        """
        chosen = {name: self.objective(name) for name in self._chosen(names)}
        parts: dict[str, Loss] = {}
        terms: list[Tensor] = []

        def factor(name: str, n_own: int) -> float:
            divisor = max(1, n_own) if positions is None else positions[name]
            return chosen[name].weight.at(outputs.step) / divisor

        # Objectives at the same positions share the logits.
        groups: dict[str, dict[str, VocabularyObjective]] = {}
        for name, objective in chosen.items():
            if isinstance(objective, VocabularyObjective):
                groups.setdefault(objective.positions, {})[name] = objective
                continue
            loss: Loss = objective(outputs)
            terms.append(loss.sum * factor(name, loss.positions))
            parts[name] = Loss(loss.sum.detach(), loss.positions)
        for group in groups.values():
            counts = {name: each.n_positions(outputs.batch) for name, each in group.items()}
            factors = [factor(name, count) for name, count in counts.items()]
            term, sums = vocabulary_losses([*group.values()], outputs, factors)
            terms.append(term)
            parts |= {
                name: Loss(each, counts[name]) for name, each in zip(group, sums, strict=True)
            }
        return Losses(torch.stack(terms).sum(), {name: parts[name] for name in chosen})

    def forward(
        self,
        batch: MaskedBatch,
        step: int = 0,
        names: Collection[str] | None = None,
        positions: Mapping[str, int] | None = None,
    ) -> Losses:
        """Run both models and compute the losses. See `encode` and `losses` for the arguments."""
        return self.losses(self.encode(batch, step, names), names, positions)

    def total(self, means: Mapping[str, Tensor], step: int) -> Tensor:
        """The weighted sum of mean losses. means: each objective's, a scalar."""
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
            output_hidden_states=self._returns_layers[side],
            return_dict=True,
        )
        hidden = {
            number: result.last_hidden_state if number == last else result.hidden_states[number]
            for number in numbers
        }
        read = {pair[side] for objective in active for pair in objective.attention_pairs}
        attention = {n: a for n, a in self._taps[side].take().items() if n in read}
        return Encoded(result.last_hidden_state, hidden, attention, masked_lm_head(model))
