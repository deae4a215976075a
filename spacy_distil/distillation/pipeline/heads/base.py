"""The base class of all heads, and the settings of one.

A *head* is a pipe of the student together with the teacher's pipe that it learns from. It records
what the teacher predicts for each document, and the cache keeps these arrays. Later it turns them
into a loss and a gradient for the student's pipe, and runs the backward pass.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from numpy.typing import NDArray
from spacy.errors import Errors
from spacy.pipeline import TrainablePipe
from spacy.tokens import Doc
from spacy.training import Example, validate_examples

from spacy_distil.distillation.pipeline.labels import output_names
from spacy_distil.errors import ConfigError
from spacy_distil.runs.settings import Section

# "soft": the teacher's distribution. "silver": its decisions, as if they were annotation. "gold":
# annotation alone. "auto": the first of these that is possible.
Target = Literal["auto", "soft", "silver", "gold"]
Weight = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Temperature = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, pydantic.Field(ge=0, le=1)]

Array = NDArray[Any]
# The records of some docs: for each field an array per doc, (rows, width).
Records = Mapping[str, Sequence[Array]]


@dataclass(frozen=True)
class Field:
    """An array that a head records of each doc, (rows, width).

    per: what a row stands for: a "token", the "doc", or an "item", of which a doc may have any
        number.
    width: number of columns.
    dtype: numpy's name of the number format on disk.
    """

    per: Literal["token", "doc", "item"]
    width: int
    dtype: str


class PipeSettings(Section):
    """How a pipe of the student learns: the settings of [distillation.pipes.NAME].

    teacher: name of the teacher's pipe. None means the name of the student's pipe.
    target: what the pipe learns from.
    temperature: of teacher and student, for the soft targets.
    weight: factor on the pipe's gradient in every stage.
    spans_key: the teacher's span group to learn from. None means the group of a spancat's own name,
        and for entities doc.ents.
    threshold: score of spans and independent categories below which the teacher has decided against
        them. None means no threshold for spans, and 0.5 for categories.
    """

    teacher: str | None = None
    target: Target = "auto"
    temperature: Temperature = 1.0
    weight: Weight = 1.0
    spans_key: str | None = None
    threshold: Probability | None = None

    def source(self, name: str) -> str:
        """Return the teacher's name of the pipe.

        name: the student's name of it.
        """
        return self.teacher or name


class UnsuitedError(ConfigError):
    """A head does not suit a pipe as it is set up. Another head may suit it."""


class Head(ABC):
    """A pipe of the student, and how it learns from a pipe of the teacher.

    student: the pipe that learns.
    teacher: the pipe that it learns from, in a pipeline of its own. None means that the student
        learns from annotation alone, but its own `update` would not pass over docs without
        annotation. Such a head records nothing, and its `update` needs `soft` = 0.
    settings: temperature and weight of the head.
    Raises UnsuitedError for pipes that another head may suit, ConfigError for all other faults.
    """

    # The fields of the records. Without a teacher there are none.
    fields: Mapping[str, Field]
    # Whether `record` takes docs that the teacher's pipe has annotated, and does not run it itself.
    reads_annotation: ClassVar[bool] = False

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
        """A description of the records' origin. Records of another origin must not be read.

        It holds a digest of the student's labels, which depends on their order.
        """
        names = json.dumps(output_names(self.student), sort_keys=True)
        digest = blake2b(names.encode("utf8"), digest_size=8).hexdigest()
        return f"{type(self).__name__} of {self.settings.source(self.name)!r}, labels {digest}"

    @abstractmethod
    def record(self, docs: Sequence[Doc]) -> dict[str, list[Array]]:
        """Run the teacher's pipe and return what it predicts, by field: an array per doc.

        docs: of the teacher's vocab, annotated by all pipes before this one, and by this one if
            `reads_annotation`. They do not change.
        RETURNS: arrays of the shapes in `fields`. The cache converts floats to its own format.
        """

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
        """Learn from a batch: gather the gradients of the pipe, and pass the encoder's on to it.

        examples: their predicted docs are of the student's vocab. Examples without annotation learn
            from the records alone.
        records: what `record` returned, in the order of the examples. Empty if `soft` is 0.
        soft, gold: weights of the teacher's part and of the annotation's part. One is above 0.
        drop: dropout of the pipe's own layers.
        losses: receives the loss, added under the pipe's name.
        """
        losses.setdefault(self.name, 0.0)
        validate_examples(examples, f"{type(self).__name__}.update")
        losses[self.name] += self.settings.weight * self._learn(examples, records, soft, gold, drop)

    @abstractmethod
    def _learn(
        self, examples: Sequence[Example], records: Records, soft: float, gold: float, drop: float
    ) -> float:
        """Gather the gradients of a batch. See `update` for the arguments.

        RETURNS: the loss without the pipe's weight.
        """

    def _check_loss(self, loss: float) -> None:
        """Raise spaCy's error if a loss is not finite. Call it before the backward pass."""
        if not isfinite(loss):
            raise ValueError(Errors.E910.format(name=self.name))
