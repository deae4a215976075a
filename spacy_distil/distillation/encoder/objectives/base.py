"""The interface of objectives: their inputs and outputs.

An objective is one distillation loss. It declares its needs (`Needs`), fits itself to two models or
refuses them (`prepare`), and computes a `Loss` from the outputs of teacher and student for a batch
(`Outputs`). Costly outputs are computed only if an active objective needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from spacy_distil.distillation.encoder.schedules import Schedule
from spacy_distil.students.masked_lm_heads import MaskedLMHead
from spacy_distil.students.masking import MaskedBatch

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Needs:
    """The requirements of an objective.

    teacher: the teacher must run on the batch.
    teacher_head, student_head: the model must have a masked-LM head.
    masking: the loss is computed at masked pieces only.
    """

    teacher: bool = True
    teacher_head: bool = False
    student_head: bool = False
    masking: bool = False


class Loss(NamedTuple):
    """The loss of a batch.

    sum: over positions; a scalar with its graph.
    positions: their number.
    """

    sum: Tensor
    positions: int


class Attention(NamedTuple):
    """The inputs of one layer's self-attention.

    Each is (blocks, length, attention heads x head size), the heads side by side.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Encoded:
    """The outputs of one model for a batch.

    last_hidden: (blocks, length, width).
    hidden_states: (blocks, length, width) by number of the layer, 0 being the embeddings and 1 the
        output of the lowest layer. Has only the layers that an objective asks for.
    attention: by number of the layer, 1 being the lowest. Has only the layers that an objective
        asks for.
    head: the model's masked-LM head, or `None`.
    """

    last_hidden: Tensor
    hidden_states: Mapping[int, Tensor]
    attention: Mapping[int, Attention]
    head: MaskedLMHead | None

    def at(self, rows: Tensor | None, layer: int | None = None) -> Tensor:
        """Select hidden states at some positions.

        rows: (n,) indices into the flattened batch; `None` is all of them.
        layer: its number, see `hidden_states`; `None` is the last hidden state.
        RETURNS: (n, width).
        """
        hidden = self.last_hidden if layer is None else self.hidden_states[layer]
        flat = hidden.flatten(0, 1)
        return flat if rows is None else flat.index_select(0, rows)

    def vocabulary_features(self, rows: Tensor | None) -> Tensor:
        """Compute the input of the head's decoder at some positions.

        rows: see `at`.
        RETURNS: (n, width).
        """
        return self.mlm_head.transform(self.at(rows))

    @property
    def mlm_head(self) -> MaskedLMHead:
        """The head, for objectives whose `needs` include one."""
        if self.head is None:
            raise RuntimeError("this objective's needs must include the model's masked-LM head")
        return self.head


@dataclass(frozen=True)
class Outputs:
    """The inputs of an objective for one batch.

    teacher: the teacher's outputs, without gradients; `None` if no objective needs them.
    student: the student's outputs.
    step: number of optimizer steps taken before, for schedules.
    """

    teacher: Encoded | None
    student: Encoded
    batch: MaskedBatch
    step: int = 0

    @property
    def target(self) -> Encoded:
        """The teacher's outputs, for objectives whose `needs` include the teacher."""
        if self.teacher is None:
            raise RuntimeError("this objective's needs must include teacher=True")
        return self.teacher


class Objective(torch.nn.Module):
    """One distillation loss.

    An objective may have parameters, such as a projection between widths. They are trained and
    checkpointed with the student, but not saved with it.

    weight: factor of this loss in the sum to minimize. A weight of 0 at all steps switches the
        objective off.
    needs: its requirements.
    hidden_pairs: pairs (layer of the student, layer of the teacher) whose hidden states it reads,
        numbered as in `Encoded.hidden_states`. `prepare` sets it.
    attention_pairs: likewise for `Encoded.attention`.
    """

    needs = Needs()
    hidden_pairs: Sequence[tuple[int, int]] = ()
    attention_pairs: Sequence[tuple[int, int]] = ()

    def __init__(self, weight: float | Iterable[float]) -> None:
        super().__init__()
        self.weight = Schedule("weight", weight, at_least=0)

    @property
    def is_active(self) -> bool:
        """Whether the weight is above 0 at any step."""
        return not (self.weight.is_constant and self.weight.at(0) == 0)

    def prepare(self, teacher: PretrainedConfig, student: PretrainedConfig) -> None:
        """Fit the objective to two models. Raises `ConfigError` if it cannot compare them.

        Initialize parameters with torch's global random generator.
        """

    def forward(self, outputs: Outputs) -> Loss:
        """Compute the loss of one batch, unweighted."""
        raise NotImplementedError


def make_projection(student_width: int, teacher_width: int) -> torch.nn.Module:
    """Make a module from the student's width to the teacher's: a linear layer if they differ."""
    if student_width == teacher_width:
        return torch.nn.Identity()
    return torch.nn.Linear(student_width, teacher_width)
