"""Vectors of whole docs: `doc.vector` of the student learns `doc.vector` of the teacher.

For a translation, the teacher's vector is that of the original, so that a sentence and its
translations come near the same place (Reimers and Gurevych 2020, "Making Monolingual Sentence
Embeddings Multilingual using Knowledge Distillation", equation 1). A doc that is no translation is
its own original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from thinc.types import Floats2d
from thinc.util import to_numpy

from spacy_distil.component.pipe import DistilTransformerPipe
from spacy_distil.component.shim import get_encoder
from spacy_distil.distillation.pipeline.corpus import original_of
from spacy_distil.distillation.pipeline.heads.base import Array, Field, Records
from spacy_distil.distillation.pipeline.hidden import last_states, teacher_encoder
from spacy_distil.encoding import to_ops
from spacy_distil.errors import ConfigError
from spacy_distil.text.docs import same_tokens

# The field of the records.
VECTOR = "vector"
# Scores: the mean cosine to the teacher's vector, and the share of docs whose own original is the
# one that is nearest to them, of all originals.
COSINE, ACCURACY = "vectors_cos", "vectors_acc"


class DocVectors:
    """How a student's encoder learns the teacher's vectors of docs.

    student: the encoder that learns.
    nlp: the teacher. It tokenizes the originals.
    Raises ConfigError if the encoders have different widths: only behind a projection, which
        `doc.vector` does not have, could the student's vectors come near the teacher's.
    """

    def __init__(self, student: DistilTransformerPipe, nlp: Language) -> None:
        self.student = student
        self.nlp = nlp
        self.teacher = teacher_encoder(nlp)
        self.student_layers = [get_encoder(student.model).n_layers]
        self.width = get_encoder(self.teacher.model).width
        width = get_encoder(student.model).width
        if width != self.width:
            raise ConfigError(
                f"The student's encoder has vectors of width {width}, and the teacher's of width "
                f"{self.width}, so doc.vector of one cannot learn that of the other. Give the "
                f"student an encoder of width {self.width}, or give no stage of "
                "[distillation.stages] a weight for vectors."
            )

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields of the records."""
        return {VECTOR: Field("doc", self.width, "float32")}

    @property
    def source(self) -> str:
        """A description of the records' origin."""
        return f"doc.vector of {self.teacher.name!r}"

    # The teacher

    def record(
        self, docs: Sequence[Doc], originals: Sequence[str | None]
    ) -> dict[str, list[Array]]:
        """Record the teacher's vectors.

        docs: of the teacher's vocab, as `HiddenStates.record` takes them.
        originals: the text that each doc is a translation of, or None.
        RETURNS: by field, (1, width) for each doc. It is zero if there is no token.
        """
        ops = self.teacher.model.ops
        own = [doc for doc, text in zip(docs, originals, strict=True) if text is None]
        texts = list(dict.fromkeys(text for text in originals if text is not None))
        made = [self.nlp.make_doc(text) for text in texts]
        encoded = get_encoder(self.teacher.model).predict_docs(made, ops)
        states = iter(last_states(self.teacher, own))
        by_text = dict(zip(texts, map(_mean, encoded), strict=True))
        means = [_mean(next(states)) if text is None else by_text[text] for text in originals]
        return {VECTOR: [ops.to_numpy(mean[None]).astype("float32") for mean in means]}

    # The student

    def compare(
        self, hidden: Floats2d, lengths: Sequence[int], records: Records, weight: float
    ) -> tuple[float, Callable[[], Floats2d]]:
        """Compare the means of docs with their targets. See `EncoderTarget`.

        The loss of a doc is the squared difference, averaged over width. It is 0 if the doc or its
        original has no token with a piece.
        """
        ops = self.student.model.ops
        targets = to_ops(ops, np.concatenate([np.zeros((0, self.width), "f"), *records[VECTOR]]))
        if len(targets) != len(lengths):
            raise ValueError(f"Expected vectors of {len(lengths)} docs, got {len(targets)}.")
        ends = np.cumsum([0, *lengths]).tolist()
        parts = [slice(start, stop) for start, stop in pairwise(ends)]
        d_hidden = ops.xp.zeros_like(hidden)
        total: Any = 0.0  # stays on the device until the end
        scale = weight / self.width
        for part, target in zip(parts, targets, strict=True):
            mean = _mean(hidden[part])
            difference = (mean - target) * (mean.any() & target.any())
            total += (difference**2).sum()
            if part.start < part.stop:
                d_hidden[part] = 2 * scale * difference / (part.stop - part.start)
        return scale * float(total), lambda: d_hidden

    # Scores

    def prepare(self, examples: Sequence[Example]) -> None:
        """Write the teacher's vectors to development documents, and let the student be scored.

        The references get a tensor of a single row: their vector, as spaCy takes the mean.
        """
        docs = [same_tokens(example.predicted, self.nlp.vocab) for example in examples]
        vectors = self.record(docs, [original_of(example.predicted) for example in examples])
        for example, vector in zip(examples, vectors[VECTOR], strict=True):
            example.reference.tensor = vector
        self.student.scorer = score_vectors


def score_vectors(examples: Sequence[Example], **settings: Any) -> dict[str, float]:
    """Score vectors of docs. The references have the teacher's, see `DocVectors.prepare`.

    RETURNS: COSINE and ACCURACY. Docs whose original is the same count as translations of it.
    """
    pairs = [(_unit(each.predicted), _unit(each.reference)) for each in examples]
    pairs = [(own, target) for own, target in pairs if target.any()]
    if not pairs:
        return {COSINE: 0.0, ACCURACY: 0.0}
    own, targets = map(np.stack, zip(*pairs, strict=True))
    similar = own @ np.unique(targets, axis=0).T
    cosines = (own * targets).sum(axis=1)
    found = own.any(axis=1) & (cosines >= similar.max(axis=1) - 1e-6)
    return {COSINE: float(cosines.mean()), ACCURACY: float(found.mean())}


def _unit(doc: Doc) -> Array:
    """Return the vector of a doc with the length 1, or zero. (width,) float64."""
    vector: Any = to_numpy(_mean(doc.tensor)).astype("float64")
    norm = np.linalg.norm(vector)
    return np.asarray(vector / norm if norm else vector)


def _mean(states: Any) -> Any:
    """Return the mean of the rows, as `doc.vector` is made: zero if there are none."""
    return states.mean(axis=0) if len(states) else states.sum(axis=0)
