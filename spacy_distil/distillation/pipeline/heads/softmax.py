"""Pipes that choose a label per token by a softmax.

They predict tags, morphology, sentence starts, lemmas, or the entities of `distil_ner`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from spacy.attrs import IS_SPACE  # type: ignore[import-not-found]
from spacy.pipeline import EditTreeLemmatizer, Morphologizer, SentenceRecognizer, TrainablePipe
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Model, set_dropout_rate
from thinc.types import Floats2d

from spacy_distil.distillation.pipeline.heads.base import (
    Array,
    Field,
    Head,
    PipeSettings,
    Records,
    UnsuitedError,
)
from spacy_distil.distillation.pipeline.labels import match_labels, output_names
from spacy_distil.distillation.pipeline.losses import softmax_kl
from spacy_distil.errors import ConfigError
from spacy_distil.ner.decoding import doc_cuts
from spacy_distil.ner.pipe import DistilNER
from spacy_distil.ner.schemes import merge_biluo, tag_names, to_biluo
from spacy_distil.softmax import SMALLEST_PROBABILITY, log_probabilities, output_layer

# How many labels per token are recorded with their probabilities. In the distribution of a trained
# tagger, all labels beyond the 16 most probable ones add up to nearly nothing.
TOP_K = 16


class SoftmaxHead(Head):
    """A tagger, morphologizer, senter, trainable_lemmatizer or distil_ner.

    It records the teacher's most probable labels for each token, by their numbers among the
    student's labels, and their log-probabilities. The most probable label comes first. If two
    `distil_ner` spell entities in different schemes, the teacher's distribution is spelled in the
    student's scheme first.
    """

    student: Any
    teacher: Any

    def __init__(
        self, student: TrainablePipe, teacher: TrainablePipe | None, settings: PipeSettings
    ) -> None:
        super().__init__(student, teacher, settings)
        if teacher is None:
            return
        _softmax_layer(student, "student")
        _softmax_layer(teacher, "teacher")
        self._numbers = _match(student, teacher)
        n_labels = len(self._numbers)
        k = min(n_labels, TOP_K)
        number_format = "int16" if n_labels <= np.iinfo(np.int16).max else "int32"
        self.fields = {
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
        """Return the records of all tokens: labels and log-probabilities, (n_tokens, k) each.

        docs: each has tokens.
        """
        numbers, log_probs = self.fields["labels"], self.fields["log_probs"]
        if not docs:
            return (
                np.zeros((0, numbers.width), numbers.dtype),
                np.zeros((0, log_probs.width), np.float32),
            )
        ops = self.teacher.model.ops
        logs = ops.to_numpy(ops.flatten(log_probabilities(self.teacher.model, docs)))
        if isinstance(self.teacher, DistilNER) and self.teacher.scheme != self.student.scheme:
            logs = self._respell(docs, logs)
        k = log_probs.width
        best = np.argpartition(-logs, k - 1, axis=1)[:, :k]
        best = np.take_along_axis(
            best, np.argsort(-np.take_along_axis(logs, best, axis=1), axis=1, kind="stable"), axis=1
        )
        kept = np.take_along_axis(logs, best, axis=1)
        return self._numbers[best].astype(numbers.dtype), kept

    def _respell(self, docs: Sequence[Doc], logs: Array) -> Array:
        """Spell the teacher's distribution over tags in the student's scheme.

        logs: log-probabilities, (n_tokens, n_tags of the teacher).
        RETURNS: (n_tokens, n_tags of the student).
        """
        is_space = np.concatenate([doc.to_array(IS_SPACE) == 1 for doc in docs])
        cuts = doc_cuts(map(len, docs))
        biluo = to_biluo(np.exp(logs.astype(np.float64)), self.teacher.scheme, cuts, is_space)
        probs = merge_biluo(biluo, self.student.scheme)
        return np.log(np.maximum(probs, SMALLEST_PROBABILITY)).astype(np.float32)

    def _learn(
        self, examples: Sequence[Example], records: Records, soft: float, gold: float, drop: float
    ) -> float:
        docs = [example.predicted for example in examples]
        is_annotated = np.array([bool(gold) and self._has_gold(each) for each in examples], bool)
        if not any(map(len, docs)) or not (soft or is_annotated.any()):
            return 0.0
        model, weight = self.student.model, self.settings.weight
        ops = model.ops
        set_dropout_rate(model, drop)
        scores, backprop = model.begin_update(docs)
        probs = ops.flatten(scores)
        lengths = np.array([len(doc) for doc in docs], dtype="i")
        loss, d_logits = 0.0, ops.xp.zeros_like(probs)
        if soft:
            soft_loss, d_soft = self._soft_loss(probs, records)
            loss += soft * soft_loss
            d_logits += (weight * soft) * d_soft
        if is_annotated.any():
            annotated = np.flatnonzero(is_annotated).tolist()
            gold_loss, d_gold = self._gold_loss(
                [examples[i] for i in annotated], [scores[i] for i in annotated]
            )
            loss += gold * gold_loss
            rows = ops.xp.asarray(np.repeat(is_annotated, lengths))
            d_logits[rows] += (weight * gold) * d_gold
        self._check_loss(loss)
        backprop(ops.unflatten(d_logits, lengths))
        return loss

    def _soft_loss(self, probs: Floats2d, records: Records) -> tuple[float, Floats2d]:
        """Compute the teacher's part of the loss, summed over tokens.

        probs: the student's, of all docs, (n_tokens, n_labels).
        RETURNS (loss, d_logits): the latter (n_tokens, n_labels).
        """
        ops = self.student.model.ops
        labels = ops.asarray_i(np.concatenate(records["labels"]))
        log_probs = ops.asarray_f(np.concatenate(records["log_probs"]))
        return softmax_kl(probs, labels, log_probs, self.settings.temperature)

    def _gold_loss(self, examples: list[Example], scores: list[Floats2d]) -> tuple[float, Floats2d]:
        """Compute the annotation's part of the loss, as the pipe itself does.

        scores: probabilities, (n_tokens, n_labels) for each doc.
        RETURNS (loss, d_logits): the latter (n_tokens of all docs, n_labels).
        """
        try:
            loss, d_logits = self.student.get_loss(examples, scores)
        except KeyError as error:
            raise ConfigError(
                f"The annotation for {self.name!r} has the label {error}, which the teacher does "
                "not know. Remove it from the training data, or let the pipe learn from these "
                f'alone: set target = "gold" in [distillation.pipes.{self.name}].'
            ) from error
        return float(loss), self.student.model.ops.flatten(d_logits)

    def _has_gold(self, example: Example) -> bool:
        """Tell whether any token is annotated for the pipe.

        spaCy takes a doc of one token for annotated with its sentence start.
        """
        return any(map(example.reference.has_annotation, _annotations(self.student)))


def _softmax_layer(pipe: TrainablePipe, owner: str) -> Model:
    layer = output_layer(pipe.model)
    if layer.name != "softmax":
        raise UnsuitedError(
            f"The model of the {owner}'s {pipe.name!r} ends in a layer {layer.name!r}, but its "
            "soft targets need thinc's softmax. Use spacy.Tagger.v2, or set target = "
            f'"gold" in [distillation.pipes.{pipe.name}].'
        )
    return layer


def _match(student: Any, teacher: Any) -> NDArray[np.int64]:
    """Return for each output of the teacher its number among the student's, (n_labels,)."""
    if isinstance(student, EditTreeLemmatizer) and isinstance(teacher, EditTreeLemmatizer):
        if output_names(student) != output_names(teacher):
            raise ConfigError(
                f"Teacher and student have different edit trees for {student.name!r}: "
                f"{len(teacher.labels)} and {len(student.labels)} labels, which are numbers of "
                "trees. Leave the labels out of [initialize], so that the student takes the "
                f'teacher\'s, or set target = "gold" in [distillation.pipes.{student.name}].'
            )
        return np.arange(len(student.labels))
    if isinstance(student, DistilNER) and isinstance(teacher, DistilNER):
        if student.scheme == "IOB1" != teacher.scheme:
            raise UnsuitedError(
                f"The student's {student.name!r} has scheme = 'IOB1', whose tags depend on the "
                f"entity before, the teacher's {teacher.name!r} {teacher.scheme!r}: a distribution "
                "cannot be spelled so. Set scheme of the student to 'BILUO', 'IOB2' or the "
                f'teacher\'s, or target = "silver" in [distillation.pipes.{student.name}].'
            )
        match_labels(student.name, student.labels, teacher.labels)
        scheme = student.scheme  # the distribution comes in the student's scheme
        return match_labels(student.name, student.tag_names, tag_names(teacher.labels, scheme))
    return match_labels(student.name, student.labels, teacher.labels)


def _annotations(pipe: TrainablePipe) -> tuple[str, ...]:
    """List the token attributes that the pipe learns from."""
    if isinstance(pipe, Morphologizer):
        return ("POS", "MORPH")
    if isinstance(pipe, SentenceRecognizer):
        return ("SENT_START",)
    if isinstance(pipe, EditTreeLemmatizer):
        return ("LEMMA",)
    if isinstance(pipe, DistilNER):
        return ("ENT_IOB",)
    return ("TAG",)
