"""Pipes that classify whole documents: textcat and textcat_multilabel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from spacy.pipeline import TrainablePipe
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import set_dropout_rate
from thinc.types import Floats2d

from spacy_distil.distillation.pipeline.heads.base import (
    Array,
    Field,
    Head,
    PipeSettings,
    Records,
    UnsuitedError,
)
from spacy_distil.distillation.pipeline.labels import match_labels
from spacy_distil.distillation.pipeline.losses import bernoulli_kl, softmax_kl, to_log_odds
from spacy_distil.errors import ConfigError
from spacy_distil.softmax import SMALLEST_PROBABILITY, output_layer, safe_log

# thinc's output layers. The first expects the gradient of its logits. The others expect the
# gradient of their probabilities, and apply their own derivative.
_SOFTMAX = "softmax"
_SOFTMAX_ACTIVATION = "softmax_activation"
_LOGISTIC = "logistic"
# Below any p * (1 - p) that thinc's logistic layer makes, except for p = 1.
_SMALLEST_VARIANCE = 1e-10


class TextcatHead(Head):
    """A textcat or textcat_multilabel.

    It records the teacher's log-probabilities for each doc if the student's model ends in a
    softmax, or each label's log-odds if it ends in a logistic function, in the student's order of
    labels. The student learns nothing from a doc without tokens.

    The gradient of the teacher's part is always the gradient of a divergence. The annotation's part
    is spaCy's own: the gradient of the cross-entropy if the model ends in thinc's `softmax`, and
    the gradient of squared errors behind `softmax_activation` and `logistic`. The latter is smaller
    by a factor p * (1 - p), where p is the label's probability, so a teacher that is sure does not
    equal annotation there, even at temperature 1. Behind these two layers a probability that
    float32 rounds to 1 has no gradient and stays 1, as in spaCy.

    The loss is a sum over docs and labels: of divergences for the teacher's part, and of squared
    errors for the annotation's part, of which spaCy reports the mean.
    """

    student: Any
    teacher: Any

    def __init__(
        self, student: TrainablePipe, teacher: TrainablePipe | None, settings: PipeSettings
    ) -> None:
        super().__init__(student, teacher, settings)
        self._labels: tuple[str, ...] = self.student.labels
        self._output = output_layer(student.model).name
        if teacher is None:
            return
        if self._output not in (_SOFTMAX, _SOFTMAX_ACTIVATION, _LOGISTIC):
            raise UnsuitedError(
                f"The model of the student's {student.name!r} ends in a layer {self._output!r}, "
                f"but soft targets need one of {_SOFTMAX}, {_SOFTMAX_ACTIVATION} or {_LOGISTIC}. "
                "Set no_output_layer = false if it has this setting, use another of spaCy's "
                f'architectures, or set target = "gold" in [distillation.pipes.{student.name}].'
            )
        self._match()
        self.fields = {"scores": Field("doc", len(self._labels), "float32")}

    def _match(self) -> None:
        """Find the numbers of the teacher's labels among the student's."""
        self._numbers = match_labels(self.name, self._labels, self.teacher.labels)

    @property
    def source(self) -> str:
        return f"{super().source}, {'log-probs' if self._is_exclusive else 'log-odds'}"

    @property
    def _is_exclusive(self) -> bool:
        return self._output != _LOGISTIC

    def record(self, docs: Sequence[Doc]) -> dict[str, list[Array]]:
        recorded = np.zeros((len(docs), len(self._labels)), dtype=np.float32)
        filled = _indices_of(map(len, docs))
        if filled:
            scores = self.teacher.predict([docs[i] for i in filled])
            probs = self.teacher.model.ops.to_numpy(scores)
            self._check_probabilities(probs)
            recorded[np.array(filled)[:, None], self._numbers] = self._to_scores(probs)
        return {"scores": list(recorded[:, None])}

    def _to_scores(self, probs: Any) -> Any:
        return safe_log(probs) if self._is_exclusive else to_log_odds(probs)

    def _check_probabilities(self, probs: Array) -> None:
        least, most = float(probs.min()), float(probs.max())
        if not (least >= 0 and most <= 1 + 1e-4):
            raise ConfigError(
                f"The teacher's {self.name!r} gives scores from {least:.4g} to {most:.4g}, "
                "expected probabilities. Train one with no_output_layer = false, or set "
                f'target = "gold" in [distillation.pipes.{self.name}].'
            )

    def _learn(
        self, examples: Sequence[Example], records: Records, soft: float, gold: float, drop: float
    ) -> float:
        docs = [example.predicted for example in examples]
        filled = _indices_of(map(len, docs))
        annotated = _indices_of(map(self._has_gold, examples)) if gold else []
        if not filled or not (soft or annotated):
            return 0.0
        model, weight = self.student.model, self.settings.weight
        set_dropout_rate(model, drop)
        scores, backprop = model.begin_update(docs)
        loss = 0.0
        d_scores = model.ops.xp.zeros_like(scores)
        # A teacher may have said nothing about a doc.
        taught = [i for i in filled if not np.isnan(records["scores"][i]).any()] if soft else []
        if taught:
            targets = model.ops.asarray_f(np.concatenate([records["scores"][i] for i in taught]))
            rows = model.ops.asarray1i(taught)
            soft_loss, d_soft = self._soft_loss(scores[rows], targets)
            loss += soft * soft_loss
            d_scores[rows] += (weight * soft) * d_soft
        if annotated:
            rows = model.ops.asarray1i(annotated)
            _, d_gold = self.student.get_loss([examples[i] for i in annotated], scores[rows])
            loss += gold * float((d_gold**2).sum())
            d_scores[rows] += (weight * gold) * d_gold
        self._check_loss(loss)
        backprop(d_scores)
        return loss

    def _soft_loss(self, probs: Floats2d, targets: Floats2d) -> tuple[float, Floats2d]:
        """Compute the teacher's part of the loss, summed over docs.

        probs: the student's, (n_docs, n_labels).
        targets: the records, (n_docs, n_labels).
        RETURNS (loss, d_scores): the latter is the gradient that the output layer expects,
            (n_docs, n_labels).
        """
        xp = self.student.model.ops.xp
        temperature = self.settings.temperature
        if self._output == _LOGISTIC:
            loss, d_logits = bernoulli_kl(probs, targets, temperature)
            return loss, d_logits / xp.maximum(probs * (1 - probs), _SMALLEST_VARIANCE)
        loss, d_logits = softmax_kl(probs, None, targets, temperature)
        if self._output == _SOFTMAX_ACTIVATION:
            # The layer's derivative is p * (dY - (p * dY).sum()), and the sum is 0 here.
            return loss, d_logits / xp.maximum(probs, SMALLEST_PROBABILITY)
        return loss, d_logits

    def _has_gold(self, example: Example) -> bool:
        """Tell whether a doc is annotated with any label of the pipe."""
        return not example.reference.cats.keys().isdisjoint(self._labels)


def _indices_of(flags: Iterable[object]) -> list[int]:
    """List the indices of the flags that are true."""
    return [i for i, flag in enumerate(flags) if flag]
