"""Teachers of any kind: what a pipe leaves on docs, learned by the student's pipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spacy.pipeline import (
    MultiLabel_TextCategorizer,
    SentenceRecognizer,
    SpanCategorizer,
    TrainablePipe,
)
from spacy.tokens import Doc
from spacy.training import Example

from spacy_distil.distillation.pipeline.heads.annotation import Annotation, Cats, annotation_of
from spacy_distil.distillation.pipeline.heads.base import Array, Head, PipeSettings
from spacy_distil.distillation.pipeline.heads.silver import SilverHead
from spacy_distil.distillation.pipeline.heads.softmax import SoftmaxHead
from spacy_distil.distillation.pipeline.heads.textcat import TextcatHead
from spacy_distil.errors import ConfigError


class DecisionHead(SilverHead):
    """A pipe that learns the decisions of a pipe of any factory, as silver annotation."""

    reads_annotation = True

    def _choose(self) -> tuple[type[Annotation], Sequence[str]]:
        kind = annotation_of(self.student, self.settings)
        assert kind is not None  # the plan pairs no others
        return kind, (list(map(str, self.student.labels)) if kind.has_labels else [])

    @property
    def source(self) -> str:
        return f"{super().source}, {_describe(self.student, self.settings)}"

    def _decide(self, docs: Sequence[Doc]) -> Sequence[Doc]:
        return docs

    def _update(self, batch: Sequence[Example], drop: float) -> float:
        if isinstance(self.student, SentenceRecognizer):
            # Its own `update` takes docs without sentences for docs of one sentence.
            return SoftmaxHead(self.student, None, self.settings)._learn(batch, {}, 0, 1, drop)
        return super()._update(batch, drop)


class CatsHead(TextcatHead):
    """A textcat or textcat_multilabel that learns the categories on docs.

    Soft targets are their scores. Silver annotation is 1 or 0 for each.
    """

    reads_annotation = True

    def _match(self) -> None:
        """The records have the student's labels."""

    @property
    def source(self) -> str:
        return f"{super().source}, {_describe(self.student, self.settings)}"

    def record(self, docs: Sequence[Doc]) -> dict[str, list[Array]]:
        rows: list[Array] = []
        for doc in docs:
            cats = Cats(self.student, self._labels, doc.vocab.strings, self.settings)
            rows.append(self._to_scores(cats.read(doc)["scores"]))
        return {"scores": rows}


def decision_head(student: Any, teacher: Any, settings: PipeSettings) -> Head:
    """Make the head of a pair whose teacher is of no known kind.

    settings: their target is "soft" or "silver".
    Raises ConfigError for settings that do not suit the student's pipe.
    """
    check_settings(student, settings)
    kind: type[Head] = CatsHead if annotation_of(student) is Cats else DecisionHead
    return kind(student, teacher, settings)


def check_settings(student: TrainablePipe, settings: PipeSettings) -> None:
    """Raise ConfigError for a `threshold` or a `spans_key` that would have no effect."""
    kind = annotation_of(student, settings)
    takes_spans = kind is not None and "doc.spans" in kind.assigns
    section = f"distillation.pipes.{student.name}"
    if settings.spans_key is not None and not takes_spans:
        raise ConfigError(
            f"{section}.spans_key = {settings.spans_key!r}: the student's {student.name!r} does "
            "not learn from spans. Leave the setting out."
        )
    takes_threshold = takes_spans or isinstance(student, MultiLabel_TextCategorizer)
    if settings.threshold is not None and not takes_threshold:
        raise ConfigError(
            f"{section}.threshold = {settings.threshold}: only spans and the categories of a "
            "textcat_multilabel have scores to compare with it. Leave the setting out, or set "
            "spans_key for entities from a span group."
        )


def _describe(student: TrainablePipe, settings: PipeSettings) -> str:
    """Describe the settings that records depend on."""
    key = settings.spans_key
    if key is None and isinstance(student, SpanCategorizer):
        key = student.key
    return f"{settings.target}, spans {key!r}, threshold {settings.threshold}"
