"""Hidden states: layers of the student's encoder learn those of the teacher's, token by token.

The match is per spaCy token, so that the two may have different tokenizers; where their widths
differ, a linear layer of its own carries each of the student's layers to the teacher's width, as in
TinyBERT (Jiao et al. 2020, equations 8 and 9).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

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
from spacy_distil.encoding import to_ops
from spacy_distil.errors import ConfigError, WeightsError

# The setting that says which layers.
SETTING = "distillation.hidden.layers"
# What is recorded: a row for each token, the teacher's layers that are learned side by side.
VECTORS = "vectors"
LARGEST = float(np.finfo(np.float16).max)


def find_encoder(nlp: Language) -> DistilTransformerPipe | None:
    """The first of our encoders in a pipeline; None where there is none."""
    encoders = (pipe for _, pipe in nlp.pipeline if isinstance(pipe, DistilTransformerPipe))
    return next(encoders, None)


def teacher_encoder(nlp: Language) -> DistilTransformerPipe:
    """The encoder of a teacher's pipeline whose hidden states can be learned.

    Raises ConfigError where there is none of ours.
    """
    encoder = find_encoder(nlp)
    if encoder is None:
        components = {each: nlp.get_pipe_meta(each).factory for each in nlp.pipe_names}
        listed = ", ".join(f"{each} ({factory})" for each, factory in components.items())
        raise ConfigError(
            "The teacher has no distil_transformer whose hidden states could be learned. Its "
            f"components: {listed or 'none'}. Turn a pipeline of spacy-transformers into one of "
            "ours with 'python -m spacy distil convert', or give no stage of "
            "[distillation.stages] a weight for hidden."
        )
    return encoder


def make_projections(
    n_pairs: int, student_width: int, teacher_width: int
) -> list[Model[Floats2d, Floats2d]]:
    """New linear layers from one width to the other, one for each pair of layers; none where the
    widths are equal.
    """
    if student_width == teacher_width:
        return []
    projections = [Linear(teacher_width, student_width) for _ in range(n_pairs)]
    for each in projections:
        each.initialize()
    return projections


class HiddenStates:
    """What a student's encoder learns from the teacher's.

    student: the encoder that learns.
    teacher: the encoder that it learns from, in a pipeline of its own.
    layers: pairs of a layer of the student and one of the teacher, as `layer_map` makes them.
    projections: from the student's width to the teacher's, one for each pair; none where the widths
        are equal. `None` makes new ones.
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
        """What is recorded."""
        return {VECTORS: Field("token", len(self.recorded_layers) * self.width, "float16")}

    @property
    def source(self) -> str:
        """What the recorded values are of."""
        return f"layers {', '.join(map(str, self.recorded_layers))} of {self.teacher.name!r}"

    # The teacher

    def record(self, docs: Sequence[Doc]) -> dict[str, list[Array]]:
        """The teacher's hidden states, (n_tokens, n_recorded_layers * width) for each doc.

        docs: of the teacher's vocab, and, where anything has annotated them that writes
            `doc.tensor`, just annotated by the teacher's encoder: where the last layer is all that
            is learned, that is what their tensors are taken for. Docs without one, or with one of
            another shape, are encoded. All are left as they are.
        """
        ops, encoder = self.teacher.model.ops, get_encoder(self.teacher.model)
        vectors: list[Any]
        if self._asks_for_inner_layers():
            vectors = [*encoder.predict_docs(docs, ops, self.recorded_layers)]
        else:
            vectors = [doc.tensor for doc in docs]
            shapes = [(len(doc), self.width) for doc in docs]
            # A doc_cleaner leaves none.
            unknown = [
                i for i, shape in enumerate(shapes) if getattr(vectors[i], "shape", None) != shape
            ]
            computed = encoder.predict_docs([docs[i] for i in unknown], ops) if unknown else []
            for i, each in zip(unknown, computed, strict=True):
                vectors[i] = each
        clipped = [ops.xp.clip(each, -LARGEST, LARGEST) for each in vectors]
        return {VECTORS: [ops.to_numpy(each.astype("float16")) for each in clipped]}

    def _asks_for_inner_layers(self) -> bool:
        last = get_encoder(self.teacher.model).n_layers
        return self.recorded_layers != [last]

    def _check_teacher(self) -> None:
        engine = get_encoder(self.teacher.model).settings.engine
        if engine != "torch" and self._asks_for_inner_layers():
            raise ConfigError(
                f"{SETTING} asks for layers {self.teacher_layers} of the teacher, which runs with "
                f"engine = {engine!r} and gives its last hidden states alone. Set {SETTING} = "
                '"last", or take the teacher that this one was made from by '
                "'python -m spacy distil quantize'."
            )

    # The student

    def update(
        self,
        examples: Sequence[Example],
        records: Records,
        *,
        weight: float,
        losses: dict[str, float],
    ) -> None:
        """Encode a batch for the listeners, as `DistilTransformerPipe.update` does, and learn.

        The loss of a token is the squared difference, averaged over width and pairs of layers.
        Tokens without a piece, in the teacher or in the student, count nothing.

        examples: their predicted docs are of the student's vocab.
        records: what was recorded, in the order of the examples.
        weight: factor on loss and gradient.
        losses: gets the loss, summed over tokens, added under the name of the student's component.
            That adds the squared gradients of its listeners itself, once each, under the same name:
            the table of `spacy train` has one column for a component. In a stage of hidden states
            alone no listener reports, and the column is the loss.

        Raises spaCy's ValueError where the loss is not finite, before anything learns from it.
        """
        targets = self._pack(examples, records)
        hidden, backprop = self.student.update_hidden(examples, self.student_layers, losses=losses)
        loss, differentiate = self._compare(hidden, targets, weight)
        if not isfinite(loss):
            raise ValueError(Errors.E910.format(name=self.student.name))
        backprop(differentiate())
        losses[self.student.name] += loss

    def finish_update(self, optimizer: Optimizer) -> None:
        """Take an optimizer step of the projections. The encoder takes its own."""
        for projection in self.projections:
            projection.finish_update(optimizer)

    def _pack(self, examples: Sequence[Example], records: Records) -> Any:
        """What was recorded of a batch: (n_tokens of all docs, n_recorded_layers * width)."""
        n_tokens = [len(example.predicted) for example in examples]
        vectors = records[VECTORS]
        if [len(each) for each in vectors] != n_tokens:
            raise ValueError(
                f"The recorded hidden states are of docs of {[len(each) for each in vectors]} "
                f"tokens, but the examples have {n_tokens}: these are other docs, or other tokens."
            )
        empty = np.zeros((0, self.fields[VECTORS].width), dtype="float16")
        return to_ops(self.student.model.ops, np.concatenate([empty, *vectors]))

    def _compare(
        self, hidden: Floats2d, targets: Any, weight: float
    ) -> tuple[float, Callable[[], Floats2d]]:
        """The loss, and what makes its gradient by `hidden`, once, and gathers that by the
        projections.

        hidden: (n_tokens of all docs, n_pairs * width of the student).
        targets: (n_tokens of all docs, n_recorded_layers * width of the teacher).
        """
        ops = self.student.model.ops
        n_pairs = len(self.student_layers)
        counts = (targets.any(axis=1) & ops.xp.any(hidden, axis=1))[:, None]
        scale = weight / (n_pairs * self.width)
        d_hidden = ops.xp.zeros_like(hidden)
        if not counts.any():
            return 0.0, lambda: d_hidden  # and no gradient of zeros for the projections
        # Of each layer, all (n_tokens, its width): views.
        recorded = ops.xp.split(targets, len(self.recorded_layers), axis=1)
        total: Any = 0.0  # an array of the device from the first pair on: one synchronization
        backprops = []
        for i, own in enumerate(ops.xp.split(hidden, n_pairs, axis=1)):
            target = recorded[self.recorded_layers.index(self.teacher_layers[i])]
            project = self.projections[i].begin_update if self.projections else _as_it_is
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

    # Serialization

    def to_bytes(self) -> bytes:
        """The projections."""
        return srsly.msgpack_dumps([each.to_bytes() for each in self.projections])

    def from_bytes(self, data: bytes) -> HiddenStates:
        """Read what `to_bytes` wrote. Raises WeightsError where it is of other layers or widths."""
        saved = srsly.msgpack_loads(data)
        try:
            for projection, each in zip(self.projections, saved, strict=True):
                projection.from_bytes(each)
        except ValueError as error:
            raise WeightsError(
                f"The saved projections do not fit {len(self.teacher_layers)} pairs of layers of "
                f"widths {get_encoder(self.student.model).width} and {self.width}: {error}. "
                "Start the run anew, or set the layers and the encoders as they were."
            ) from error
        return self


def _as_it_is(hidden: Floats2d) -> tuple[Floats2d, Callable[[Floats2d], Floats2d]]:
    return hidden, lambda d_hidden: d_hidden
