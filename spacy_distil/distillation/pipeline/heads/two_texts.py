"""Pipes that read two texts together: distil_pair and distil_qa."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from spacy.pipeline import TrainablePipe
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import set_dropout_rate

from spacy_distil.distillation.pipeline.heads.base import (
    Array,
    Field,
    Head,
    PipeSettings,
    Records,
)
from spacy_distil.distillation.pipeline.labels import match_labels
from spacy_distil.distillation.pipeline.losses import bernoulli_kl, scores_kl
from spacy_distil.errors import ConfigError
from spacy_distil.pairs.other import other_in, pairs_of
from spacy_distil.pairs.questions import questions_of


class PairHead(Head):
    """A distil_pair.

    It records the teacher's logits of each doc that names another text, in the student's order of
    labels; NaN for other docs, from which the student learns nothing. The loss is a sum over pairs:
    the divergence of the probabilities, or half of the squared error of a number.
    """

    student: Any
    teacher: Any

    def __init__(
        self, student: TrainablePipe, teacher: TrainablePipe | None, settings: PipeSettings
    ) -> None:
        super().__init__(student, teacher, settings)
        if teacher is None:
            return
        if self.student.output != self.teacher.output:
            raise ConfigError(
                f"{student.name!r} has output = {self.student.output!r}, but the teacher's "
                f"{settings.source(student.name)!r} has {self.teacher.output!r}. Set the teacher's "
                f'in [components.{student.name}], or target = "gold" in '
                f"[distillation.pipes.{student.name}]."
            )
        _check_extension(self, "other")
        self._numbers = match_labels(self.name, self.student.labels, self.teacher.labels)
        self.fields = {"logits": Field("doc", len(self.student.labels), "float32")}

    @property
    def source(self) -> str:
        return f"{super().source}, {self.student.output}"

    def record(self, docs: Sequence[Doc]) -> dict[str, list[Array]]:
        recorded = np.full((len(docs), len(self._numbers)), np.nan, dtype=np.float32)
        found = pairs_of(docs, self.teacher.cfg["other"])
        if found:
            logits = self.teacher.predict_logits([pair for _, pair in found])
            rows = np.array([i for i, _ in found])
            recorded[rows[:, None], self._numbers] = logits
        return {"logits": list(recorded[:, None])}

    def _learn(
        self, examples: Sequence[Example], records: Records, soft: float, gold: float, drop: float
    ) -> float:
        name = self.student.cfg["other"]
        examples = list(examples)
        taught = [
            bool(soft) and not np.isnan(records["logits"][i]).any() for i in range(len(examples))
        ]
        annotated = [bool(gold) and self.student.has_gold(example) for example in examples]
        own = [
            i
            for i, example in enumerate(examples)
            if (taught[i] or annotated[i]) and other_in(example, name) is not None
        ]
        if not own:
            return 0.0
        model, weight = self.student.model, self.settings.weight
        set_dropout_rate(model, drop)
        logits, backprop = model.begin_update(self.student.read_pairs([examples[i] for i in own]))
        loss, d_logits = 0.0, model.ops.xp.zeros_like(logits)
        rows = [row for row, i in enumerate(own) if taught[i]]
        if rows:
            targets = np.concatenate([records["logits"][own[row]] for row in rows])
            soft_loss, d_soft = self._soft_loss(logits[rows], model.ops.asarray2f(targets))
            loss += soft * soft_loss
            d_logits[rows] += (weight * soft) * d_soft
        rows = [row for row, i in enumerate(own) if annotated[i]]
        if rows:
            of_rows = [examples[own[row]] for row in rows]
            gold_loss, d_gold = self.student.get_loss(of_rows, logits[rows])
            loss += gold * gold_loss
            d_logits[rows] += (weight * gold) * d_gold
        self._check_loss(loss)
        backprop(d_logits)
        return loss

    def _soft_loss(self, logits: Any, targets: Any) -> tuple[float, Any]:
        """Compute the teacher's part of the loss, summed over pairs, and its gradient.

        logits, targets: the student's and the teacher's, (n_pairs, n_labels).
        """
        temperature = self.settings.temperature
        if self.student.output == "number":
            difference = logits - targets
            return 0.5 * float((difference**2).sum()), difference
        if self.student.output == "probability":
            return bernoulli_kl(self.student.to_scores(logits), targets, temperature)
        return scores_kl(logits, targets, temperature)


def _check_extension(head: Any, setting: str) -> None:
    """Raise ConfigError if teacher and student read further texts from different extensions."""
    own, theirs = head.student.cfg[setting], head.teacher.cfg[setting]
    if own != theirs:
        raise ConfigError(
            f"{setting} = {own!r} of {head.name!r}, but the teacher reads doc._.{theirs}: it would "
            f"teach nothing. Set {setting} = {theirs!r} in [components.{head.name}] and in the "
            "readers of [corpora]."
        )


class QAHead(Head):
    """A distil_qa.

    It records the teacher's logits of begins and ends for each question of a doc. The student
    learns the distributions of both over the tokens of the doc, and no answer if that is possible,
    from questions with and without annotation. The loss is the mean divergence of the two, summed
    over questions.
    """

    student: Any
    teacher: Any

    def __init__(
        self, student: TrainablePipe, teacher: TrainablePipe | None, settings: PipeSettings
    ) -> None:
        super().__init__(student, teacher, settings)
        if teacher is not None:
            _check_extension(self, "questions")
            self.fields = {"logits": Field("item", 2, "float16")}

    def record(self, docs: Sequence[Doc]) -> dict[str, list[Array]]:
        questions = [questions_of(doc, self.teacher.cfg["questions"]) for doc in docs]
        pairs = [(each, doc) for doc, own in zip(docs, questions, strict=True) for each in own]
        logits = self.teacher.predict_pairs(pairs)
        none = np.zeros((0, 2), dtype=np.float32)
        return {
            "logits": [np.concatenate([none, *(next(logits) for _ in own)]) for own in questions]
        }

    def _learn(
        self, examples: Sequence[Example], records: Records, soft: float, gold: float, drop: float
    ) -> float:
        pairs: list[tuple[str, Doc]] = []
        taught: list[Array | None] = []
        annotated: list[tuple[int, int] | None] = []
        for i, example in enumerate(examples):
            questions, targets = self.student.read_targets(example)
            rows = list(records["logits"][i]) if soft else []
            n = 1 + len(example.predicted)
            for place, (question, target) in enumerate(zip(questions, targets, strict=True)):
                own = rows[place * n : (place + 1) * n]
                if own or (gold and target is not None):
                    pairs.append((question, example.predicted))
                    taught.append(np.stack(own).astype("f") if own else None)
                    annotated.append(target if gold else None)
        if not pairs:
            return 0.0
        model, weight = self.student.model, self.settings.weight
        set_dropout_rate(model, drop)
        logits, backprop = model.begin_update(pairs)
        gradients = [model.ops.xp.zeros_like(own) for own in logits]
        loss = 0.0
        for own, d_own, targets, target in zip(logits, gradients, taught, annotated, strict=True):
            if targets is not None:
                own_loss, d_soft = self._soft_loss(own, targets)
                loss += soft * own_loss
                d_own += (weight * soft) * d_soft
            if target is not None:
                own_loss, (d_gold,) = self.student.get_gold_loss([own], [target])
                loss += gold * own_loss
                d_own += (weight * gold) * d_gold
        self._check_loss(loss)
        backprop(gradients)
        return loss

    def _soft_loss(self, logits: Any, targets: Array) -> tuple[float, Any]:
        """Compute the teacher's part of the loss of one question, and its gradient.

        logits, targets: (1 + n_tokens, 2).
        """
        ops, first = self.student.model.ops, self.student.first_row
        d_logits = ops.xp.zeros_like(logits)
        if len(logits) == first:
            return 0.0, d_logits
        # A distribution in a row.
        own = ops.as_contig(logits[first:].T)
        loss, d_own = scores_kl(own, ops.asarray2f(targets[first:].T), self.settings.temperature)
        d_logits[first:] = 0.5 * d_own.T
        return 0.5 * loss, d_logits
