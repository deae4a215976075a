"""Silver annotation: the teacher's predictions, learned as if people had annotated them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from spacy.attrs import (  # type: ignore[import-not-found]
    DEP,
    ENT_IOB,
    ENT_TYPE,
    HEAD,
)
from spacy.pipeline import DependencyParser, TrainablePipe
from spacy.strings import StringStore
from spacy.tokens import Doc
from spacy.training import Example

from spacy_distil.distillation.pipeline.heads.base import (
    Array,
    Field,
    Head,
    PipeSettings,
    Records,
    UnsuitedError,
)
from spacy_distil.distillation.pipeline.labels import ENTITY_KINDS, match_labels
from spacy_distil.errors import ConfigError
from spacy_distil.ner.decoding import MISSING, OUTSIDE, B, I, L, U
from spacy_distil.text.docs import same_tokens

Hashes = NDArray[np.uint64]

# Values of token.ent_iob.
_UNSET, _INSIDE, _OUTSIDE, _BEGIN = range(4)


class SilverHead(Head):
    """A `ner` or `distil_ner` that learns from either of them, or a `parser` from a `parser`.

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
        self._kind: type[_Annotation]
        if isinstance(student, ENTITY_KINDS) and isinstance(teacher, ENTITY_KINDS):
            self._kind = _Entities
        elif isinstance(student, DependencyParser) and isinstance(teacher, DependencyParser):
            self._kind = _Dependencies
        else:
            raise UnsuitedError(
                f"The student's {student.name!r} is a {type(student).__name__}, the teacher's "
                f"{teacher.name!r} a {type(teacher).__name__}: silver annotation is for a 'ner' or "
                "'distil_ner' on both sides, or a 'parser' on both sides. Set target = "
                f'"gold" in [distillation.pipes.{student.name}].'
            )
        if self._kind is _Dependencies and self.teacher.cfg["learn_tokens"]:
            raise UnsuitedError(
                f"The teacher's {teacher.name!r} has learn_tokens = true and merges tokens, but "
                "the student's docs keep theirs. Use a teacher with learn_tokens = false, or set "
                f'target = "gold" in [distillation.pipes.{student.name}].'
            )
        if settings.weight != 1:
            raise ConfigError(
                f"distillation.pipes.{student.name}.weight = {settings.weight}: silver annotation "
                "is learned like any other, at the weight 1. Leave the setting out, or set "
                'target = "soft" if pipes of the same kind are on both sides.'
            )
        self._labels = sorted(self.teacher.labels)
        match_labels(self.name, self.student.labels, self._labels)
        self.fields = self._kind.fields

    def record(self, docs: Sequence[Doc]) -> dict[str, list[Array]]:
        # Listeners read the encoder's vectors from the docs themselves, not from copies.
        predictions = self.teacher.predict(list(docs))
        copies = [doc.copy() for doc in docs]
        self.teacher.set_annotations(copies, predictions)
        annotation = self._kind(self._labels, self.teacher.vocab.strings)
        rows = [annotation.read(doc) for doc in copies]
        return {name: [row[name] for row in rows] for name in self.fields}

    def _learn(
        self, examples: Sequence[Example], records: Records, soft: float, gold: float, drop: float
    ) -> float:
        self.check_weights(soft, gold)
        batch = list(examples)
        if soft:
            annotation = self._kind(self._labels, self.student.vocab.strings)
            for i, example in enumerate(examples):
                if not (gold and self._has_gold(example)):
                    reference = same_tokens(example.predicted, example.predicted.vocab)
                    annotation.write(reference, {name: records[name][i] for name in self.fields})
                    batch[i] = Example(example.predicted, reference)
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

    def _has_gold(self, example: Example) -> bool:
        """Tell whether any token is annotated for the pipe."""
        return example.reference.has_annotation(self._kind.attribute)


class _Annotation(ABC):
    """One kind of annotation: how it is recorded from docs, and written to docs.

    labels: the teacher's labels in the order of their numbers.
    strings: the store that gives the labels their hashes.

    fields: the fields of the records.
    attribute: name of a token attribute that every annotated token has.
    """

    fields: ClassVar[Mapping[str, Field]]
    attribute: ClassVar[str]

    def __init__(self, labels: Sequence[str], strings: StringStore) -> None:
        self._hashes: Hashes = np.array([strings.add(label) for label in labels], dtype=np.uint64)

    @abstractmethod
    def read(self, doc: Doc) -> dict[str, Array]:
        """Return an array for each field, (n_tokens, width)."""

    @abstractmethod
    def write(self, doc: Doc, rows: Mapping[str, Array]) -> None:
        """Replace the annotation of a doc.

        rows: as `read` returns them.
        """

    def _numbers_of(self, hashes: Hashes) -> NDArray[np.int64]:
        """Return the numbers of labels, -1 for unknown ones.

        hashes: (n_tokens,).
        RETURNS: (n_tokens,).
        """
        if not len(self._hashes):
            return np.full(len(hashes), -1)
        order = np.argsort(self._hashes)
        places = np.searchsorted(self._hashes, hashes, sorter=order)
        numbers = order[np.minimum(places, len(order) - 1)]
        return np.where(self._hashes[numbers] == hashes, numbers, -1)


class _Entities(_Annotation):
    """BILUO tags, as `ner.decoding` numbers them.

    Blocked tokens are MISSING, and so are entities whose labels are not the pipe's: other pipes of
    the teacher's pipeline have set them.
    """

    fields: ClassVar[Mapping[str, Field]] = {"tags": Field("token", 1, "int16")}
    attribute = "ENT_IOB"

    def read(self, doc: Doc) -> dict[str, Array]:
        iob, types = doc.to_array([ENT_IOB, ENT_TYPE]).T
        labels = self._numbers_of(types)
        starts = iob == _BEGIN
        ends = np.ones(len(doc), dtype=bool)
        ends[:-1] = iob[1:] != _INSIDE
        move = np.select([starts & ends, starts, ends], [U, B, L], I)
        tags = np.where(iob == _OUTSIDE, OUTSIDE, 1 + 4 * labels + move)
        tags[(iob == _UNSET) | ((iob != _OUTSIDE) & (labels < 0))] = MISSING
        return {"tags": tags.astype(np.int16)[:, None]}

    def write(self, doc: Doc, rows: Mapping[str, Array]) -> None:
        tags = rows["tags"][:, 0]
        # The attributes of each tag. MISSING is -1, so it takes the last row.
        attributes: Any = np.zeros((1 + 4 * len(self._hashes) + 1, 2), dtype=np.uint64)
        attributes[OUTSIDE, 0] = _OUTSIDE
        attributes[1:-1, 0] = [_BEGIN, _INSIDE, _INSIDE, _BEGIN] * len(self._hashes)
        attributes[1:-1, 1] = np.repeat(self._hashes, 4)
        doc.from_array([ENT_IOB, ENT_TYPE], attributes[tags])


class _Dependencies(_Annotation):
    """Syntactic heads, relative to their children, and dependencies.

    Sentences follow from the heads.
    """

    fields: ClassVar[Mapping[str, Field]] = {
        "heads": Field("token", 1, "int32"),
        "deps": Field("token", 1, "int16"),
    }
    attribute = "DEP"

    def read(self, doc: Doc) -> dict[str, Array]:
        heads, deps = doc.to_array([HEAD, DEP]).T
        return {
            # Negative numbers are stored as two's complement.
            "heads": heads.astype(np.int64).astype(np.int32)[:, None],
            "deps": self._numbers_of(deps).astype(np.int16)[:, None],
        }

    def write(self, doc: Doc, rows: Mapping[str, Array]) -> None:
        columns: Any = np.zeros((len(doc), 2), dtype=np.uint64)
        columns[:, 0] = rows["heads"][:, 0].astype(np.int64).astype(np.uint64)
        columns[:, 1] = np.append(self._hashes, np.uint64(0))[rows["deps"][:, 0]]
        doc.from_array([HEAD, DEP], columns)
