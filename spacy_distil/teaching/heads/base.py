"""What every kind of taught pipe has in common.

A *head* is one pipe of the student together with the teacher's pipe that it learns from. On the
teacher's side it records, per document, what there is to learn; these arrays are cached. On the
student's side it turns them into a loss and a gradient, and runs the backward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from numpy.typing import NDArray
from spacy.pipeline import TrainablePipe
from spacy.tokens import Doc
from spacy.training import Example

Array = NDArray[Any]
# What is recorded of some docs: for each field an array for each doc, (rows, width).
Records = Mapping[str, Sequence[Array]]


@dataclass(frozen=True)
class Field:
    """One array that is recorded of each doc, (rows, width).

    per: what a row stands for: a "token", the "doc", or an "item" of which a doc has any number.
    width: number of columns.
    dtype: numpy's name of the number format on disk.
    """

    per: Literal["token", "doc", "item"]
    width: int
    dtype: str


class Head(ABC):
    """One pipe of the student, and how it learns from one pipe of the teacher.

    student: the pipe that learns.
    teacher: the pipe that it learns from, in a pipeline of its own.
    temperature: of teacher and student, for the soft targets.
    weight: factor on the gradient of this pipe, in every stage.
    """

    # What is recorded; none where a pipe learns from gold alone.
    fields: Mapping[str, Field]
    # Whether `update` has a use for gold annotation beside what is recorded.
    mixes_gold: ClassVar[bool] = True

    @property
    @abstractmethod
    def name(self) -> str:
        """The student's name of the pipe."""

    @abstractmethod
    def record(self, docs: Sequence[Doc]) -> dict[str, list[Array]]:
        """What the teacher's pipe makes of these docs, by field: an array for each doc.

        docs: of the teacher's vocab, annotated by the pipes that come before this one, not by
            this one. They are left as they are.
        """

    @abstractmethod
    def update(
        self,
        examples: Sequence[Example],
        records: Records,
        *,
        soft: float,
        gold: float,
        drop: float,
        losses: dict[str, float],
    ) -> None:
        """Learn from a batch: gradients are gathered, the encoder gets its share.

        examples: their predicted docs are of the student's vocab; whoever has no annotation
            trains on what is recorded alone.
        records: what was recorded, in the order of the examples; empty where `soft` is 0.
        soft, gold: weights of the teacher's part and of the annotation's, of which one is not 0.
        drop: dropout of the pipe's own layers.
        losses: gets the loss added under the pipe's name.
        """


@dataclass(frozen=True)
class PipeSettings:
    """How one pipe is taught; see the comments in `template`."""

    temperature: float = 1.0
    weight: float = 1.0


class TrainableHead(Head):
    """A head with both its pipes."""

    def __init__(
        self, student: TrainablePipe, teacher: TrainablePipe, settings: PipeSettings
    ) -> None:
        self.student = student
        self.teacher = teacher
        self.settings = settings

    @property
    def name(self) -> str:
        return self.student.name
