"""Silver annotation: the teacher's predictions, learned as if people had annotated them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spacy.pipeline import DependencyParser, TrainablePipe
from spacy.strings import StringStore
from spacy.tokens import Doc
from spacy.training import Example

from spacy_distil.distillation.pipeline.heads.annotation import (
    Annotation,
    Dependencies,
    Entities,
)
from spacy_distil.distillation.pipeline.heads.base import (
    Array,
    Head,
    PipeSettings,
    Records,
    UnsuitedError,
)
from spacy_distil.distillation.pipeline.labels import ENTITY_KINDS, match_labels
from spacy_distil.errors import ConfigError
from spacy_distil.text.docs import same_tokens


class SilverHead(Head):
    """A pipe that learns decisions: a `ner` or `distil_ner` from either of them, or a `parser` from
    a `parser`. `DecisionHead` is for teachers of any other kind.

    The student's own `update` does the learning. An example that is annotated for the pipe keeps
    its annotation if `gold` is 1. All other examples get the teacher's if `soft` is 1. Decisions
    have no distribution that a temperature could soften, and `update` does not scale gradients, so
    the weights must be 0 or 1.
    """

    student: Any
    teacher: Any

    def __init__(
        self, student: TrainablePipe, teacher: TrainablePipe, settings: PipeSettings
    ) -> None:
        super().__init__(student, teacher, settings)
        self._kind, self._labels = self._choose()
        if settings.weight != 1:
            raise ConfigError(
                f"distillation.pipes.{student.name}.weight = {settings.weight}: silver annotation "
                "is learned like any other, at the weight 1. Leave the setting out, or set "
                'target = "soft" if pipes of the same kind are on both sides.'
            )
        self.fields = self._annotation(student.vocab.strings).fields

    def _choose(self) -> tuple[type[Annotation], Sequence[str]]:
        """Choose the kind of annotation and the order of its labels. Raises as `Head` says."""
        student, teacher = self.student, self.teacher
        kind: type[Annotation]
        if isinstance(student, ENTITY_KINDS) and isinstance(teacher, ENTITY_KINDS):
            kind = Entities
        elif isinstance(student, DependencyParser) and isinstance(teacher, DependencyParser):
            kind = Dependencies
        else:
            raise UnsuitedError(
                f"The student's {student.name!r} is a {type(student).__name__}, the teacher's "
                f"{teacher.name!r} a {type(teacher).__name__}: silver annotation is for a 'ner' or "
                "'distil_ner' on both sides, or a 'parser' on both sides. Set target = "
                f'"gold" in [distillation.pipes.{student.name}].'
            )
        if kind is Dependencies and teacher.cfg["learn_tokens"]:
            raise UnsuitedError(
                f"The teacher's {teacher.name!r} has learn_tokens = true and merges tokens, but "
                "the student's docs keep theirs. Use a teacher with learn_tokens = false, or set "
                f'target = "gold" in [distillation.pipes.{student.name}].'
            )
        labels = sorted(teacher.labels)
        match_labels(self.name, student.labels, labels)
        return kind, labels

    def _annotation(self, strings: StringStore) -> Annotation:
        """Make the kind of annotation for docs with these strings."""
        return self._kind(self.student, self._labels, strings, self.settings)

    def record(self, docs: Sequence[Doc]) -> dict[str, list[Array]]:
        if not docs:
            return {name: [] for name in self.fields}
        annotation = self._annotation(docs[0].vocab.strings)
        rows = [annotation.read(doc) for doc in self._decide(docs)]
        return {name: [row[name] for row in rows] for name in self.fields}

    def _decide(self, docs: Sequence[Doc]) -> Sequence[Doc]:
        """Return docs with the teacher's decisions."""
        # Listeners read the encoder's vectors from the docs themselves, not from copies.
        predictions = self.teacher.predict(list(docs))
        copies = [doc.copy() for doc in docs]
        self.teacher.set_annotations(copies, predictions)
        return copies

    def _learn(
        self, examples: Sequence[Example], records: Records, soft: float, gold: float, drop: float
    ) -> float:
        self.check_weights(soft, gold)
        annotation = self._annotation(self.student.vocab.strings)
        batch = list(examples)
        for i, example in enumerate(examples):
            is_gold = bool(gold) and annotation.is_annotated(example.reference)
            if soft and not is_gold:
                reference = same_tokens(example.predicted, example.predicted.vocab)
                annotation.write(reference, {name: records[name][i] for name in self.fields})
                batch[i] = Example(example.predicted, reference)
        return self._update(batch, drop)

    def _update(self, batch: Sequence[Example], drop: float) -> float:
        """Let the pipe learn annotation. RETURNS: the loss."""
        losses: dict[str, float] = {}
        self.student.update(batch, drop=drop, losses=losses)
        return float(losses[self.name])

    def check_weights(self, soft: float, gold: float) -> None:
        """Raise ConfigError for weights of a stage other than 0 and 1."""
        for name, value in (("soft", soft), ("gold", gold)):
            if value not in (0, 1):
                raise ConfigError(
                    f"{name} = {value} in a stage of [distillation.stages], but {self.name!r} "
                    "learns from silver annotation, which cannot be weighted. Set it to 0 or 1, or "
                    f'target = "soft" or "gold" in [distillation.pipes.{self.name}].'
                )
