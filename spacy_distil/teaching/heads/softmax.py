"""Pipes that choose one label per token by a softmax: tags, morphology, sentence starts, lemmas,
and the entities of `distil_ner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from spacy.errors import Errors
from spacy.pipeline import EditTreeLemmatizer, Morphologizer, SentenceRecognizer, TrainablePipe
from spacy.tokens import Doc
from spacy.training import Example, validate_examples
from thinc.api import Model, set_dropout_rate
from thinc.types import Floats2d

from spacy_distil.biluo import tag_names
from spacy_distil.errors import ConfigError
from spacy_distil.ner import DistilNER
from spacy_distil.teaching.heads.base import Array, Field, PipeSettings, Records, TrainableHead
from spacy_distil.teaching.labels import match_labels
from spacy_distil.teaching.losses import log_softmax, safe_log, softmax_kl

# Labels per token of which the teacher's probabilities are kept. What 16 labels leave out of a
# trained tagger's distribution is nearly nothing.
TOP_K = 16
# float16 ends at -65504; to a probability this low it makes no difference.
_LOWEST_LOG_PROB = -1e4


class SoftmaxHead(TrainableHead):
    """A tagger, morphologizer, senter, trainable_lemmatizer or distil_ner.

    Of each token are recorded the teacher's most probable labels, by their numbers among the
    student's, and their log-probabilities, from the most to the least probable.
    """

    def __init__(
        self, student: TrainablePipe, teacher: TrainablePipe, settings: PipeSettings
    ) -> None:
        super().__init__(student, teacher, settings)
        _softmax_layer(student, "student")
        self._output = _softmax_layer(teacher, "teacher")
        self._numbers = _match(student, teacher)
        n_labels = len(self._numbers)
        k = min(n_labels, TOP_K)
        number_format = "int16" if n_labels <= np.iinfo(np.int16).max else "int32"
        self.fields: Mapping[str, Field] = {
            "labels": Field("token", k, number_format),
            "log_probs": Field("token", k, "float16"),
        }

    def record(self, docs: Sequence[Doc]) -> dict[str, list[Array]]:
        lengths = [len(doc) for doc in docs]
        labels, log_probs = self._most_probable([doc for doc in docs if len(doc)])
        ends = np.cumsum(lengths)[:-1]
        return {
            "labels": np.split(labels, ends) if lengths else [],
            "log_probs": np.split(log_probs, ends) if lengths else [],
        }

    def _most_probable(self, docs: Sequence[Doc]) -> tuple[Array, Array]:
        """What is recorded of all tokens of docs that have some, (n_tokens, k) each."""
        numbers, log_probs = self.fields["labels"], self.fields["log_probs"]
        if not docs:
            return (
                np.zeros((0, numbers.width), numbers.dtype),
                np.zeros((0, log_probs.width), log_probs.dtype),
            )
        ops = self.teacher.model.ops
        scores = ops.flatten(self.teacher.model.predict(list(docs)))
        if self._output.attrs["softmax_normalize"]:
            scores = safe_log(scores)
        else:
            scores = scores / self._output.attrs["softmax_temperature"]
        logs = ops.to_numpy(log_softmax(scores))
        k = log_probs.width
        best = np.argpartition(-logs, k - 1, axis=1)[:, :k]
        best = np.take_along_axis(
            best, np.argsort(-np.take_along_axis(logs, best, axis=1), axis=1, kind="stable"), axis=1
        )
        kept = np.maximum(np.take_along_axis(logs, best, axis=1), _LOWEST_LOG_PROB)
        return self._numbers[best].astype(numbers.dtype), kept.astype(log_probs.dtype)

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
        losses.setdefault(self.name, 0.0)
        validate_examples(examples, "SoftmaxHead.update")
        docs = [example.predicted for example in examples]
        annotated = [i for i, example in enumerate(examples) if self._has_gold(example)]
        if not gold:
            annotated = []
        if not any(map(len, docs)) or not (soft or annotated):
            return
        model, weight = self.student.model, self.settings.weight
        set_dropout_rate(model, drop)
        scores, backprop = model.begin_update(docs)
        loss = 0.0
        d_scores = [model.ops.xp.zeros_like(each) for each in scores]
        if soft:
            soft_loss, d_soft = self._soft_loss(scores, records)
            loss += soft * soft_loss
            for own, part in zip(d_scores, d_soft, strict=True):
                own += (weight * soft) * part
        if annotated:
            gold_loss, d_gold = self._gold_loss(
                [examples[i] for i in annotated], [scores[i] for i in annotated]
            )
            loss += gold * gold_loss
            for i, part in zip(annotated, d_gold, strict=True):
                d_scores[i] += (weight * gold) * part
        if not np.isfinite(loss):
            raise ValueError(Errors.E910.format(name=self.name))
        backprop(d_scores)
        losses[self.name] += weight * loss

    def _soft_loss(self, scores: list[Floats2d], records: Records) -> tuple[float, list[Floats2d]]:
        """Summed over tokens, with the gradient of the logits, (n_tokens, n_labels) for each doc.

        scores: probabilities, (n_tokens, n_labels) for each doc.
        """
        ops: Any = self.student.model.ops
        labels = ops.asarray_i(np.concatenate(records["labels"]))
        log_probs = ops.asarray_f(np.concatenate(records["log_probs"]))
        loss, d_logits = softmax_kl(
            ops.flatten(scores), labels, log_probs, self.settings.temperature
        )
        lengths = np.array([len(each) for each in scores], dtype="i")
        return loss, ops.unflatten(d_logits, lengths)

    def _gold_loss(
        self, examples: list[Example], scores: list[Floats2d]
    ) -> tuple[float, list[Floats2d]]:
        """As the pipe itself computes it."""
        pipe: Any = self.student
        try:
            return pipe.get_loss(examples, scores)
        except KeyError as error:
            raise ConfigError(
                f"The annotation for {self.name!r} has the label {error}, which the teacher does "
                "not know. Remove it from the training data, or let the pipe learn from these "
                f'alone: set target = "gold" in [distillation.pipes.{self.name}].'
            ) from error

    def _has_gold(self, example: Example) -> bool:
        """Whether any token is annotated with what the pipe predicts."""
        return any(map(example.reference.has_annotation, _annotations(self.student)))


def output_layer(model: Model) -> Model:
    """The layer inside a model that makes its output, wrappers such as `resizable` aside."""
    while model.layers:
        model = model.layers[-1]
    return model


def _softmax_layer(pipe: TrainablePipe, owner: str) -> Model:
    layer = output_layer(pipe.model)
    if layer.name != "softmax":
        raise ConfigError(
            f"The model of the {owner}'s {pipe.name!r} ends in a layer {layer.name!r}, but its "
            "soft targets need thinc's softmax. Use spacy.Tagger.v2, or set target = "
            f'"gold" in [distillation.pipes.{pipe.name}].'
        )
    return layer


def _match(student: Any, teacher: Any) -> NDArray[np.int64]:
    """For each output of the teacher its number among the student's, (n_labels,)."""
    if isinstance(student, EditTreeLemmatizer) and isinstance(teacher, EditTreeLemmatizer):
        if _trees(student) != _trees(teacher):
            raise ConfigError(
                f"Teacher and student have different edit trees for {student.name!r}: "
                f"{len(teacher.labels)} and {len(student.labels)} labels, which are numbers of "
                "trees. Leave the labels out of [initialize], so that the student takes the "
                f'teacher\'s, or set target = "gold" in [distillation.pipes.{student.name}].'
            )
        return np.arange(len(student.labels))
    return match_labels(student.name, _classes(student), _classes(teacher))


def _classes(pipe: Any) -> Sequence[str]:
    """What the outputs of a pipe's model stand for."""
    return tag_names(pipe.labels) if isinstance(pipe, DistilNER) else pipe.labels


def _trees(pipe: EditTreeLemmatizer) -> tuple[tuple[int, ...], list[dict]]:
    """The labels, and all trees that they consist of.

    A tree's parts come before it. Trees behind the last label belong to none: training adds them.
    """
    n_trees = max(pipe.labels, default=-1) + 1
    return pipe.labels, pipe.label_data["trees"][:n_trees]


def _annotations(pipe: TrainablePipe) -> tuple[str, ...]:
    """Attributes of tokens that the pipe learns from."""
    if isinstance(pipe, Morphologizer):
        return ("POS", "MORPH")
    if isinstance(pipe, SentenceRecognizer):
        return ("SENT_START",)
    if isinstance(pipe, EditTreeLemmatizer):
        return ("LEMMA",)
    if isinstance(pipe, DistilNER):
        return ("ENT_IOB",)
    return ("TAG",)
