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
from spacy_distil.distillation.pipeline.heads.softmax import output_layer
from spacy_distil.distillation.pipeline.labels import match_labels
from spacy_distil.distillation.pipeline.losses import (
    LEAST,
    bernoulli_kl,
    safe_log,
    softmax_kl,
    to_log_odds,
)
from spacy_distil.errors import ConfigError

# thinc's output layers. The first takes the gradient of its logits. The others take that of their
# probabilities and apply their own derivative.
_SOFTMAX = "softmax"
_SOFTMAX_ACTIVATION = "softmax_activation"
_LOGISTIC = "logistic"
# Below any p * (1 - p) that thinc's logistic layer makes, but for p = 1.
_LEAST_VARIANCE = 1e-10


class TextcatHead(Head):
    """A textcat or textcat_multilabel.

    Of each doc are recorded the teacher's log-probabilities, where the student's model ends in a
    softmax, or the log-odds of each label, where it ends in a logistic function, by the student's
    order of labels. A doc without tokens says nothing, and teaches nothing.

    The annotation's part is spaCy's own. It is the cross-entropy's gradient where the model ends
    in thinc's `softmax`. Behind `softmax_activation` and `logistic` it is that of squared errors:
    by a factor p * (1 - p), of a label's probability p, smaller than the teacher's part, which is
    a divergence's gradient everywhere. There, a teacher that is sure does not teach as annotation
    does, even at temperature 1. With these two, a probability that float32 rounds to 1 has no way
    back from there, whatever is learned, as in spaCy.

    The loss is a sum over docs and labels: of divergences for the teacher's part, of squared
    errors for the annotation's, where spaCy reports their mean.
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
        self._numbers = match_labels(student.name, self._labels, self.teacher.labels)
        self.fields = {"scores": Field("doc", len(self._labels), "float32")}

    @property
    def source(self) -> str:
        return f"{super().source}, {'log-probs' if self._is_exclusive else 'log-odds'}"

    @property
    def _is_exclusive(self) -> bool:
        return self._output != _LOGISTIC

    def record(self, docs: Sequence[Doc]) -> dict[str, list[Array]]:
        recorded = np.zeros((len(docs), len(self._labels)), dtype=np.float32)
        filled = _numbers_of(map(len, docs))
        if filled:
            scores = self.teacher.predict([docs[i] for i in filled])
            probs = self.teacher.model.ops.to_numpy(scores)
            self._check_probabilities(probs)
            to_scores = safe_log if self._is_exclusive else to_log_odds
            recorded[np.array(filled)[:, None], self._numbers] = to_scores(probs)
        return {"scores": list(recorded[:, None])}

    def _check_probabilities(self, probs: Array) -> None:
        least, most = float(probs.min()), float(probs.max())
        if not (least >= 0 and most <= 1 + 1e-4):
            raise ConfigError(
                f"The teacher's {self.name!r} gives scores from {least:.4g} to {most:.4g}, "
                "expected probabilities. Train one with no_output_layer = false, or set "
                f'target = "gold" in [distillation.pipes.{self.name}].'
            )

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
        self._begin(examples, losses)
        docs = [example.predicted for example in examples]
        filled = _numbers_of(map(len, docs))
        annotated = _numbers_of(map(self._has_gold, examples)) if gold else []
        if not filled or not (soft or annotated):
            return
        model, weight = self.student.model, self.settings.weight
        set_dropout_rate(model, drop)
        scores, backprop = model.begin_update(docs)
        loss = 0.0
        d_scores = model.ops.xp.zeros_like(scores)
        if soft:
            targets = model.ops.asarray_f(np.concatenate([records["scores"][i] for i in filled]))
            rows = model.ops.asarray1i(filled)
            soft_loss, d_soft = self._soft_loss(scores[rows], targets)
            loss += soft * soft_loss
            d_scores[rows] += (weight * soft) * d_soft
        if annotated:
            rows = model.ops.asarray1i(annotated)
            _, d_gold = self.student.get_loss([examples[i] for i in annotated], scores[rows])
            loss += gold * float((d_gold**2).sum())
            d_scores[rows] += (weight * gold) * d_gold
        self._add_loss(loss, losses)
        backprop(d_scores)

    def _soft_loss(self, probs: Floats2d, targets: Floats2d) -> tuple[float, Floats2d]:
        """Summed over docs, with the gradient that the output layer expects.

        probs: the student's, (n_docs, n_labels).
        targets: what was recorded, (n_docs, n_labels).
        """
        xp = self.student.model.ops.xp
        temperature = self.settings.temperature
        if self._output == _LOGISTIC:
            loss, d_logits = bernoulli_kl(probs, targets, temperature)
            return loss, d_logits / xp.maximum(probs * (1 - probs), _LEAST_VARIANCE)
        loss, d_logits = softmax_kl(probs, None, targets, temperature)
        if self._output == _SOFTMAX_ACTIVATION:
            # Its derivative is p * (dY - (p * dY).sum()), of which the sum is nothing here.
            return loss, d_logits / xp.maximum(probs, LEAST)
        return loss, d_logits

    def _has_gold(self, example: Example) -> bool:
        """Whether a doc is annotated with any label of the pipe."""
        return not example.reference.cats.keys().isdisjoint(self._labels)


def _numbers_of(flags: Iterable[object]) -> list[int]:
    """Where they are true."""
    return [i for i, flag in enumerate(flags) if flag]
