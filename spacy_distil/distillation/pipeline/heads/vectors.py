"""Pipes that make a vector of each text: distil_vectors."""

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
from spacy_distil.vectors.losses import cosine_distance, similarity_distance
from spacy_distil.vectors.pairs import read_relations


class VectorsHead(Head):
    """A distil_vectors.

    It records the teacher's vector of each doc. A student whose vectors are as wide learns their
    directions: the loss is 1 - cosine. If the width differs, and for each of the student's `dims`,
    it learns the cosines between the docs of a batch. The loss is a sum over docs. A doc without
    tokens has the vector zero, from which the student learns nothing.
    """

    student: Any
    teacher: Any

    def __init__(
        self, student: TrainablePipe, teacher: TrainablePipe | None, settings: PipeSettings
    ) -> None:
        super().__init__(student, teacher, settings)
        if teacher is not None:
            self.fields = {"vector": Field("doc", self.teacher.width, "float16")}

    def record(self, docs: Sequence[Doc]) -> dict[str, list[Array]]:
        vectors = self.teacher.model.ops.to_numpy(self.teacher.predict(docs))
        # Only their directions count, and unnormalized numbers may be too large for the cache.
        norms = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return {"vector": list((vectors / norms)[:, None])}

    def _learn(
        self, examples: Sequence[Example], records: Records, soft: float, gold: float, drop: float
    ) -> float:
        has_gold = bool(gold and read_relations(examples))
        if not (soft or has_gold):
            return 0.0
        model, weight = self.student.model, self.settings.weight
        set_dropout_rate(model, drop)
        vectors, backprop = model.begin_update([example.predicted for example in examples])
        loss = 0.0
        d_vectors = model.ops.xp.zeros_like(vectors)
        if soft:
            targets = model.ops.asarray2f(np.concatenate(records["vector"]).astype("f"))
            soft_loss, d_soft = self._soft_loss(vectors, targets)
            loss += soft * soft_loss
            d_vectors += (weight * soft) * d_soft
        if has_gold:
            gold_loss, d_gold = self.student.get_loss(examples, vectors)
            loss += gold * gold_loss
            d_vectors += (weight * gold) * d_gold
        self._check_loss(loss)
        backprop(d_vectors)
        return loss

    def _soft_loss(self, vectors: Any, targets: Any) -> tuple[float, Any]:
        """Compute the teacher's part of the loss, summed over docs, and its gradient."""
        xp = self.student.model.ops.xp
        width = vectors.shape[1]
        if width == targets.shape[1]:
            loss, d_vectors = cosine_distance(vectors, targets, xp)
        else:
            loss, d_vectors = similarity_distance(vectors, targets, xp)
        for n in (n for n in self.student.dims if n < width):
            own, d_own = similarity_distance(vectors[:, :n], targets, xp)
            loss += own
            d_vectors[:, :n] += d_own
        return loss, d_vectors
