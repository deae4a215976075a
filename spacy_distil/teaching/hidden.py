"""Hidden states: layers of the student's encoder learn those of the teacher's, token by token.

The match is per spaCy token, so that the two may have different tokenizers; where their widths
differ, a linear layer of its own carries each of the student's layers to the teacher's width, as in
TinyBERT (Jiao et al. 2020, equations 8 and 9).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import srsly
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Linear, Model, Optimizer
from thinc.types import Floats2d

from spacy_distil.component import DistilTransformerPipe
from spacy_distil.encoding import to_ops
from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.shim import get_encoder
from spacy_distil.teaching.heads.base import Array, Field, Records

# The setting that says which layers.
SETTING = "distillation.hidden.layers"
# What is recorded: a row for each token, the mapped layers of the teacher side by side.
VECTORS = "vectors"
LARGEST = float(np.finfo(np.float16).max)


def layer_map(
    setting: str | Sequence[Sequence[int]], n_student: int, n_teacher: int
) -> list[tuple[int, int]]:
    """Which layer of the student learns which of the teacher: pairs of their numbers.

    setting: "last", the last from the last; "even", each of the student's from the one as far up in
        the teacher; or pairs [student's, teacher's], where 0 is the embeddings.
    n_student, n_teacher: number of layers of the encoders.
    Raises ConfigError for anything else, and for layers that are not there.
    """
    if setting == "last":
        return [(n_student, n_teacher)]
    if setting == "even":
        return [(i, round(i * n_teacher / n_student)) for i in range(1, n_student + 1)]
    wrong = f"{SETTING} = {setting!r}: "
    if isinstance(setting, str) or not setting or not all(map(_is_pair, setting)):
        raise ConfigError(
            f'{wrong}expected "last", "even", or a list of pairs [layer of the student, layer of '
            "the teacher]."
        )
    for pair in setting:
        for whose, layer, n_layers in zip(
            ("student", "teacher"), pair, (n_student, n_teacher), strict=True
        ):
            if not 0 <= layer <= n_layers:
                raise ConfigError(
                    f"{wrong}the {whose} has no layer {layer}. Its layers are 1 to {n_layers}; 0 "
                    "is its embeddings."
                )
    return [(own, other) for own, other in setting]


def find_encoder(nlp: Language, name: str | None = None) -> DistilTransformerPipe | None:
    """The first of our encoders in a pipeline, or that of this name; None where there is none."""
    for pipe_name, pipe in nlp.pipeline:
        if isinstance(pipe, DistilTransformerPipe) and name in (None, pipe_name):
            return pipe
    return None


def teacher_encoder(nlp: Language, name: str | None = None) -> DistilTransformerPipe:
    """The encoder of a teacher's pipeline whose hidden states can be learned.

    name: of its component; None for the first.
    Raises ConfigError where there is none of ours.
    """
    encoder = find_encoder(nlp, name)
    if encoder is None:
        components = {each: nlp.get_pipe_meta(each).factory for each in nlp.pipe_names}
        listed = ", ".join(f"{each} ({factory})" for each, factory in components.items())
        raise ConfigError(
            f"The teacher has no distil_transformer{f' {name!r}' if name else ''} whose hidden "
            f"states could be learned. Its components: {listed or 'none'}. Turn a pipeline of "
            "spacy-transformers into one of ours with 'python -m spacy distil convert', or leave "
            "out the hidden-state stage: set share = 0 in [distillation.stages.hidden]."
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
        return {VECTORS: Field("token", len(self.teacher_layers) * self.width, "float16")}

    # The teacher

    def record(self, docs: Sequence[Doc]) -> dict[str, list[Array]]:
        """The teacher's hidden states, (n_tokens, n_pairs * width) for each doc.

        docs: of the teacher's vocab. Where they have a `doc.tensor` of its encoder already, and the
            last layer is all that is asked for, nothing is computed anew. They are left as they
            are.
        """
        ops, encoder = self.teacher.model.ops, get_encoder(self.teacher.model)
        vectors: Sequence[Any]
        if self._asks_for_inner_layers():
            vectors = encoder.predict_docs(docs, ops, self.teacher_layers)
        else:
            vectors = [doc.tensor for doc in docs]
            if any(doc.tensor.shape != (len(doc), self.width) for doc in docs):
                vectors = encoder.predict_docs(docs, ops)
            vectors = [ops.xp.tile(each, (1, len(self.teacher_layers))) for each in vectors]
        clipped = [ops.xp.clip(each, -LARGEST, LARGEST) for each in vectors]
        return {VECTORS: [ops.to_numpy(each.astype("float16")) for each in clipped]}

    def _asks_for_inner_layers(self) -> bool:
        last = get_encoder(self.teacher.model).n_layers
        return any(layer != last for layer in self.teacher_layers)

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
        losses: gets the loss, summed over tokens, added under the name of the student's component,
            beside what that adds itself.
        """
        targets = self._pack(examples, records)
        hidden, backprop = self.student.update_hidden(examples, self.student_layers, losses=losses)
        loss, d_hidden = self._compare(hidden, targets, weight)
        backprop(d_hidden)
        losses[self.student.name] += loss

    def finish_update(self, optimizer: Optimizer) -> None:
        """Take an optimizer step of the projections. The encoder takes its own."""
        for projection in self.projections:
            projection.finish_update(optimizer)

    def _pack(self, examples: Sequence[Example], records: Records) -> Any:
        """What was recorded of a batch: (n_tokens of all docs, n_pairs * width) float16."""
        n_tokens = [len(example.predicted) for example in examples]
        vectors = records[VECTORS]
        if [len(each) for each in vectors] != n_tokens:
            raise ValueError(
                f"The recorded hidden states are of docs of {[len(each) for each in vectors]} "
                f"tokens, but the examples have {n_tokens}: these are other docs, or other tokens."
            )
        empty = np.zeros((0, len(self.teacher_layers) * self.width), dtype="float16")
        return to_ops(self.student.model.ops, np.concatenate([empty, *vectors]))

    def _compare(self, hidden: Floats2d, targets: Any, weight: float) -> tuple[float, Floats2d]:
        """Loss, and its gradient by `hidden`; that by the projections is gathered.

        hidden: (n_tokens of all docs, n_pairs * width of the student).
        targets: (n_tokens of all docs, n_pairs * width of the teacher).
        """
        ops = self.student.model.ops
        n_pairs = len(self.student_layers)
        counts = (targets.any(axis=1) & ops.xp.any(hidden, axis=1))[:, None]
        scale = weight / (n_pairs * self.width)
        d_hidden = ops.xp.zeros_like(hidden)
        if not counts.any():
            return 0.0, d_hidden  # and no gradient of zeros for the projections
        # Of each pair, all (n_tokens, width of one layer): views.
        sides = [ops.xp.split(each, n_pairs, axis=1) for each in (hidden, targets, d_hidden)]
        total: Any = 0.0  # an array of the device from the first pair on: one synchronization
        for i, (own, target, d_own) in enumerate(zip(*sides, strict=True)):
            project = self.projections[i].begin_update if self.projections else _as_it_is
            projected, backprop = project(ops.as_contig(own))
            difference = (projected - target.astype("f")) * counts
            total += (difference**2).sum()
            d_own[:] = backprop(2 * scale * difference)
        return scale * float(total), d_hidden

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


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(i, int) for i in pair)


def _as_it_is(hidden: Floats2d) -> tuple[Floats2d, Callable[[Floats2d], Floats2d]]:
    return hidden, lambda d_hidden: d_hidden
