"""What an objective is given and what it returns.

An objective is one distillation loss. It declares what it needs (`Needs`), fits itself to two
models or refuses them (`prepare`), and turns what teacher and student made of one batch (`Outputs`)
into a `Loss`. Whatever is costly is computed only where an active objective needs it.
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
    """What has to be there before an objective can be computed.

    teacher: the teacher runs on the batch.
    teacher_head, student_head: the model has a masked-LM head.
    masking: it is computed at masked pieces, and at these alone.
    """

    teacher: bool = True
    teacher_head: bool = False
    student_head: bool = False
    masking: bool = False


class Loss(NamedTuple):
    """sum: scalar, with its graph; over positions. positions: how many it is the sum of."""

    sum: Tensor
    positions: int


class Attention(NamedTuple):
    """What one layer's self-attention is computed from, (blocks, length, heads x head size) each,
    the heads side by side.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Encoded:
    """What one model made of a batch.

    last_hidden: (blocks, length, width).
    hidden_states: (blocks, length, width) by number of the layer, 0 being the embeddings and 1 the
        lowest layer's output; only those that an objective asks for.
    attention: by number of the layer, 1 being the lowest; only those that an objective asks for.
    head: the model's masked-LM head, or `None`.
    """

    last_hidden: Tensor
    hidden_states: Mapping[int, Tensor]
    attention: Mapping[int, Attention]
    head: MaskedLMHead | None

    def at(self, rows: Tensor | None, layer: int | None = None) -> Tensor:
        """Hidden states at some positions.

        rows: (n,) indices into the flattened batch; `None` is all of them.
        layer: its number, see `hidden_states`; `None` is the last hidden state.
        Returns (n, width).
        """
        hidden = self.last_hidden if layer is None else self.hidden_states[layer]
        flat = hidden.flatten(0, 1)
        return flat if rows is None else flat.index_select(0, rows)

    def vocabulary_features(self, rows: Tensor | None) -> Tensor:
        """Input of the head's decoder at some positions. rows: see `at`. Returns (n, width)."""
        return self.mlm_head.transform(self.at(rows))

    @property
    def mlm_head(self) -> MaskedLMHead:
        """The head, where the objective's `needs` have promised that there is one."""
        if self.head is None:
            raise RuntimeError("this objective's needs must include the model's masked-LM head")
        return self.head


@dataclass(frozen=True)
class Outputs:
    """All that an objective sees of one batch.

    teacher: what the teacher made of it, without gradients; `None` where no objective needs it.
    step: the number of optimizer steps taken before, for schedules.
    """

    teacher: Encoded | None
    student: Encoded
    batch: MaskedBatch
    step: int = 0

    @property
    def taught(self) -> Encoded:
        """The teacher's, where the objective's `needs` have promised that it runs."""
        if self.teacher is None:
            raise RuntimeError("this objective's needs must include teacher=True")
        return self.teacher


class Objective(torch.nn.Module):
    """One distillation loss. What it learns itself, such as a projection between widths, are its
    parameters: they are trained and checkpointed with the student, and left out when it is saved.

    weight: factor of this loss in the sum that is minimised; where it is 0 at all steps, the
        objective is switched off.
    needs: what has to be there before it can be computed.
    hidden_pairs: pairs [layer of the student, layer of the teacher] whose hidden states it reads;
        numbers as in `Encoded.hidden_states`. Set by `prepare`.
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
        """Whether there is a step at which it counts."""
        return not (self.weight.is_constant and self.weight.at(0) == 0)

    def prepare(self, teacher: PretrainedConfig, student: PretrainedConfig) -> None:
        """Make it fit two models. Raises `ConfigError` where it cannot compare them.

        It draws from torch's global random generator where it initialises parameters.
        """

    def forward(self, outputs: Outputs) -> Loss:
        """Compute the loss of one batch, unweighted."""
        raise NotImplementedError


def make_projection(student_width: int, teacher_width: int) -> torch.nn.Module:
    """From the student's width to the teacher's: a linear layer where they differ."""
    if student_width == teacher_width:
        return torch.nn.Identity()
    return torch.nn.Linear(student_width, teacher_width)
