"""What every kind of taught pipe has in common.

A *head* is one pipe of the student together with the teacher's pipe that it learns from. On the
teacher's side it records, per document, what there is to learn; these arrays are cached. On the
student's side it turns them into a loss and a gradient, and runs the backward pass.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite
from typing import Any, Literal

from numpy.typing import NDArray
from spacy.errors import Errors
from spacy.pipeline import TrainablePipe
from spacy.tokens import Doc
from spacy.training import Example, validate_examples

from spacy_distil.distillation.pipeline.labels import output_names
from spacy_distil.errors import ConfigError

# "soft": the teacher's distribution. "silver": its decisions, as if they were annotation. "gold":
# annotation alone. "auto": the first of these that is possible.
Target = Literal["auto", "soft", "silver", "gold"]

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


@dataclass(frozen=True)
class PipeSettings:
    """How one pipe of the student is taught.

    teacher: name of the teacher's pipe; None where it is that of the student's.
    target: what it learns from.
    temperature: of teacher and student, for the soft targets.
    weight: factor on the pipe's gradient, in every stage.
    """

    teacher: str | None = None
    target: Target = "auto"
    temperature: float = 1.0
    weight: float = 1.0

    def source(self, name: str) -> str:
        """The teacher's name of the pipe.

        name: the student's.
        """
        return self.teacher or name


class UnsuitedError(ConfigError):
    """A pipe, as it is set up, cannot learn or teach in the way of a head; another way may do."""


class Head(ABC):
    """One pipe of the student, and how it learns from one pipe of the teacher.

    student: the pipe that learns.
    teacher: the pipe that it learns from, in a pipeline of its own. None where it learns from
        annotation alone, by a head for the sake of documents that have none: such a head records
        nothing, and its `update` takes no `soft`.
    settings: its temperature and weight.
    Raises UnsuitedError for pipes that another head may suit, else ConfigError.
    """

    # What is recorded; nothing where there is no teacher.
    fields: Mapping[str, Field]

    def __init__(
        self, student: TrainablePipe, teacher: TrainablePipe | None, settings: PipeSettings
    ) -> None:
        self.student = student
        self.teacher = teacher
        self.settings = settings
        self.fields = {}

    @property
    def name(self) -> str:
        """The student's name of the pipe."""
        return self.student.name

    @property
    def source(self) -> str:
        """What the recorded values are of, beside their shapes: records from another source must
        not be read.

        Of the student's labels only a digest is given, which depends on their order.
        """
        names = json.dumps(output_names(self.student), sort_keys=True)
        digest = blake2b(names.encode("utf8"), digest_size=8).hexdigest()
        return f"{type(self).__name__} of {self.settings.source(self.name)!r}, labels {digest}"

    @abstractmethod
    def record(self, docs: Sequence[Doc]) -> dict[str, list[Array]]:
        """What the teacher's pipe makes of these docs, by field: an array for each doc.

        docs: of the teacher's vocab, annotated by the pipes that come before this one, not by
            this one. They are left as they are.
        RETURNS: in the shapes of `fields`. Floats are as exact as they are made; what keeps them
            converts them.
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

    def _begin(self, examples: Sequence[Example], losses: dict[str, float]) -> None:
        """Check a batch, and list the pipe among the losses, even if there is nothing to learn."""
        losses.setdefault(self.name, 0.0)
        validate_examples(examples, f"{type(self).__name__}.update")

    def _add_loss(self, loss: float, losses: dict[str, float]) -> None:
        """Report a batch's loss, without the pipe's weight. Call it before the gradient is used:
        it raises spaCy's error where the loss is not finite.
        """
        if not isfinite(loss):
            raise ValueError(Errors.E910.format(name=self.name))
        losses[self.name] += self.settings.weight * loss
