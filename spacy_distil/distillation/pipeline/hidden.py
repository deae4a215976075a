"""Hidden states: layers of the student's encoder learn layers of the teacher's encoder.

They are compared per spaCy token, so the encoders may have different tokenizers. If their widths
differ, each of the student's layers has a linear projection to the teacher's width, as in TinyBERT
(Jiao et al. 2020, equations 8 and 9).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, Protocol

import numpy as np
import srsly
from spacy.errors import Errors
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Linear, Model, Optimizer
from thinc.types import Floats2d

from spacy_distil.component.pipe import DistilTransformerPipe
from spacy_distil.component.shim import get_encoder
from spacy_distil.distillation.pipeline.heads.base import Array, Field, Records
from spacy_distil.encoding import split_docs, to_ops
from spacy_distil.errors import ConfigError, WeightsError

# The setting that chooses the layers.
SETTING = "distillation.hidden.layers"
# The field of the records: a row for each token, with the recorded layers side by side.
VECTORS = "vectors"
LARGEST = float(np.finfo(np.float16).max)


def find_encoder(nlp: Language) -> DistilTransformerPipe | None:
    """Return the first `distil_transformer` of a pipeline, or None."""
    encoders = (pipe for _, pipe in nlp.pipeline if isinstance(pipe, DistilTransformerPipe))
    return next(encoders, None)


def teacher_encoder(nlp: Language) -> DistilTransformerPipe:
    """Return the `distil_transformer` of a teacher, whose hidden states can be learned.

    Raises ConfigError if there is none.
    """
    encoder = find_encoder(nlp)
    if encoder is None:
        components = {each: nlp.get_pipe_meta(each).factory for each in nlp.pipe_names}
        listed = ", ".join(f"{each} ({factory})" for each, factory in components.items())
        raise ConfigError(
            "The teacher has no distil_transformer whose hidden states could be learned. Its "
            f"components: {listed or 'none'}. Turn a pipeline of spacy-transformers into one of "
            "spacy-distil with 'python -m spacy distil convert', or give no stage of "
            "[distillation.stages] a weight for hidden."
        )
    return encoder


def last_states(encoder: DistilTransformerPipe, docs: Sequence[Doc]) -> list[Any]:
    """Take the tensors of docs, or encode docs whose tensor is missing. A doc_cleaner may have
    removed it.
    """
    shim = get_encoder(encoder.model)
    vectors: list[Any] = [doc.tensor for doc in docs]
    missing = [
        i
        for i, doc in enumerate(docs)
        if getattr(vectors[i], "shape", None) != (len(doc), shim.width)
    ]
    if missing:
        computed = shim.predict_docs([docs[i] for i in missing], encoder.model.ops)
        for i, each in zip(missing, computed, strict=True):
            vectors[i] = each
    return vectors


def make_projections(
    n_pairs: int, student_width: int, teacher_width: int
) -> list[Model[Floats2d, Floats2d]]:
    """Make a linear layer from one width to the other for each pair of layers.

    RETURNS: the layers. The list is empty if the widths are equal.
    """
    if student_width == teacher_width:
        return []
    projections = [Linear(teacher_width, student_width) for _ in range(n_pairs)]
    for each in projections:
        each.initialize()
    return projections


class EncoderTarget(Protocol):
    """Something that a student's encoder learns from the teacher's encoder.

    student: the encoder that learns.
    student_layers: the layers of it that learn, 0 for the embeddings.
    """

    student: DistilTransformerPipe
    student_layers: list[int]

    def compare(
        self, hidden: Floats2d, lengths: Sequence[int], records: Records, weight: float
    ) -> tuple[float, Callable[[], Floats2d]]:
        """Compare hidden states of a batch with what is recorded of the teacher.

        hidden: (n_tokens of all docs, len(student_layers) * width).
        lengths: number of tokens of each doc.
        records: of the docs, by field.
        weight: factor on loss and gradient.
        RETURNS (loss, differentiate): the latter returns the gradient of `hidden`. Call it once.
        """


def update_encoder(
    student: DistilTransformerPipe,
    examples: Sequence[Example],
    targets: Sequence[tuple[EncoderTarget, Records, float]],
    losses: dict[str, float],
) -> None:
    """Encode a batch for the listeners, as `DistilTransformerPipe.update` does, and learn.

    examples: their predicted docs are of the student's vocab.
    targets: what the encoder learns, with the records of the docs, in the order of the examples,
        and a factor on loss and gradient.
    losses: receives the loss, summed over tokens or docs, added under the name of the student's
        component. The component adds the squared gradients of its listeners under the same name,
        since the table of `spacy train` has one column per component. If no pipe learns in a stage,
        no listener reports, and the column shows the loss.

    Raises spaCy's ValueError before the backward pass if the loss is not finite.
    """
    layers = [layer for target, _, _ in targets for layer in target.student_layers]
    hidden, backprop = student.update_hidden(examples, layers, losses=losses)
    width = get_encoder(student.model).width
    lengths = [len(example.predicted) for example in examples]
    total, start, differentiate = 0.0, 0, []
    for target, records, weight in targets:
        stop = start + width * len(target.student_layers)
        loss, gradient = target.compare(hidden[:, start:stop], lengths, records, weight)
        total += loss
        differentiate.append(gradient)
        start = stop
    if not isfinite(total):
        raise ValueError(Errors.E910.format(name=student.name))
    ops = student.model.ops
    backprop(ops.xp.concatenate([each() for each in differentiate], axis=1))
    losses[student.name] += total


class HiddenStates:
    """How a student's encoder learns from the teacher's encoder.

    student: the encoder that learns.
    teacher: the encoder that it learns from, in a pipeline of its own.
    layers: pairs of a layer of the student and a layer of the teacher. See `layer_map`.
    projections: from the student's width to the teacher's, one for each pair. Empty if the widths
        are equal. None makes new ones.
    """

    def __init__(
        self,
        student: DistilTransformerPipe,
        teacher: DistilTransformerPipe,
        layers: Sequence[tuple[int, int]],
        projections: Sequence[Model[Floats2d, Floats2d]] | None = None,
    ) -> None:
        self.student = student
        self.teacher = teacher
        self.student_layers = [own for own, _ in layers]
        self.teacher_layers = [other for _, other in layers]
        self.recorded_layers = sorted({*self.teacher_layers})  # each once
        self.width = get_encoder(teacher.model).width
        self._check_teacher()
        if projections is None:
            projections = make_projections(
                len(layers), get_encoder(student.model).width, self.width
            )
        self.projections = list(projections)

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields of the records."""
        return {VECTORS: Field("token", len(self.recorded_layers) * self.width, "float16")}

    @property
    def source(self) -> str:
        """A description of the records' origin."""
        return f"layers {', '.join(map(str, self.recorded_layers))} of {self.teacher.name!r}"

    # The teacher

    def record(self, docs: Sequence[Doc]) -> dict[str, list[Array]]:
        """Record the teacher's hidden states.

        docs: of the teacher's vocab. They do not change. If only the last layer is learned, their
            tensors are taken for its hidden states, so the encoder must be the last pipe that wrote
            `doc.tensor`. Docs that have no tensor, or one of another shape, are encoded.
        RETURNS: by field, (n_tokens, n_recorded_layers * width) for each doc.
        """
        ops, encoder = self.teacher.model.ops, get_encoder(self.teacher.model)
        if not docs:
            return {VECTORS: []}
        packed: Any  # in one array, because each copy from a GPU waits for it
        if self._records_inner_layers:
            packed = encoder.predict_packed(docs, ops, self.recorded_layers)
        else:
            packed = ops.xp.concatenate(last_states(self.teacher, docs))
        halves = ops.to_numpy(ops.xp.clip(packed, -LARGEST, LARGEST).astype("float16"))
        # Copies, because a view would keep the vectors of all docs in memory.
        parts: list[Any] = split_docs(halves, [len(doc) for doc in docs])
        return {VECTORS: [part.copy() for part in parts]}

    @property
    def _records_inner_layers(self) -> bool:
        last = get_encoder(self.teacher.model).n_layers
        return self.recorded_layers != [last]

    def _check_teacher(self) -> None:
        engine = get_encoder(self.teacher.model).settings.engine
        if engine != "torch" and self._records_inner_layers:
            raise ConfigError(
                f"{SETTING} asks for layers {self.teacher_layers} of the teacher, which runs with "
                f"engine = {engine!r} and returns its last hidden states alone. Set {SETTING} = "
                "\"last\", or use the teacher that 'python -m spacy distil quantize' made this one "
                "from."
            )

    # The student

    def compare(
        self, hidden: Floats2d, lengths: Sequence[int], records: Records, weight: float
    ) -> tuple[float, Callable[[], Floats2d]]:
        """Compare hidden states with their targets. See `EncoderTarget`.

        The loss of a token is the squared difference, averaged over width and pairs of layers. The
        loss of a token without a piece, in the teacher or in the student, is 0. The gradients of
        the projections are gathered with the one of `hidden`.
        """
        targets = self._pack(lengths, records)
        ops = self.student.model.ops
        n_pairs = len(self.student_layers)
        counts = (targets.any(axis=1) & ops.xp.any(hidden, axis=1))[:, None]
        scale = weight / (n_pairs * self.width)
        d_hidden = ops.xp.zeros_like(hidden)
        if not counts.any():
            return 0.0, lambda: d_hidden  # the projections get no gradient
        # A view for each layer: (n_tokens, width).
        recorded = ops.xp.split(targets, len(self.recorded_layers), axis=1)
        total: Any = 0.0  # stays on the device until the end, to wait for it only once
        backprops = []
        for i, own in enumerate(ops.xp.split(hidden, n_pairs, axis=1)):
            target = recorded[self.recorded_layers.index(self.teacher_layers[i])]
            project = self.projections[i].begin_update if self.projections else _identity
            projected, backprop = project(ops.as_contig(own))
            difference = (projected - target.astype("f")) * counts
            total += (difference**2).sum()
            backprops.append((backprop, difference))

        def differentiate() -> Floats2d:
            for d_own, (backprop, difference) in zip(
                ops.xp.split(d_hidden, n_pairs, axis=1), backprops, strict=True
            ):
                d_own[:] = backprop(2 * scale * difference)
            return d_hidden

        return scale * float(total), differentiate

    def finish_update(self, optimizer: Optimizer) -> None:
        """Take an optimizer step of the projections. The encoder takes its own step."""
        for projection in self.projections:
            projection.finish_update(optimizer)

    def _pack(self, lengths: Sequence[int], records: Records) -> Any:
        """Join the records of a batch: (n_tokens of all docs, n_recorded_layers * width)."""
        vectors = records[VECTORS]
        if [len(each) for each in vectors] != [*lengths]:
            raise ValueError(
                f"The recorded hidden states are of docs of {[len(each) for each in vectors]} "
                f"tokens, but the examples have {[*lengths]}: the docs or their tokens differ."
            )
        empty = np.zeros((0, self.fields[VECTORS].width), dtype="float16")
        return to_ops(self.student.model.ops, np.concatenate([empty, *vectors]))

    # Serialization

    def to_bytes(self) -> bytes:
        """Serialize the projections."""
        return srsly.msgpack_dumps([each.to_bytes() for each in self.projections])

    def from_bytes(self, data: bytes) -> HiddenStates:
        """Read the projections.

        Raises WeightsError if they are for other layers or widths.
        """
        saved = srsly.msgpack_loads(data)
        try:
            for projection, each in zip(self.projections, saved, strict=True):
                projection.from_bytes(each)
        except ValueError as error:
            raise WeightsError(
                f"The saved projections do not fit {len(self.teacher_layers)} pairs of layers of "
                f"widths {get_encoder(self.student.model).width} and {self.width}: {error}. "
                "Start a new run, or set layers and encoders as they were."
            ) from error
        return self


def _identity(hidden: Floats2d) -> tuple[Floats2d, Callable[[Floats2d], Floats2d]]:
    return hidden, lambda d_hidden: d_hidden
