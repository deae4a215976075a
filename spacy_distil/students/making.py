"""Making a student: some of the teacher's layers, whole or cut, with their weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from spacy_distil.students.families import CUTTABLE
from spacy_distil.students.layer_choice import choose_layers
from spacy_distil.students.pruning import choose_kept, cut
from spacy_distil.students.shapes import (
    StudentShape,
    albert_groups,
    choose_shape,
    student_config,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spacy_distil.students.importance import Importance
    from spacy_distil.students.teachers import Teacher

__all__ = ["choose_layers", "make_student"]

# "bert.encoder.layer.7.output.dense.weight": the number is the layer's, in ALBERT that of a group.
_LAYER = re.compile(r"(?<=\.layer\.)\d+(?=\.)|(?<=\.albert_layer_groups\.)\d+(?=\.)")


def make_student(
    teacher: Teacher,
    shape: StudentShape | Sequence[int],
    importance: Importance | None = None,
    *,
    start: Literal["teacher", "random"] = "teacher",
) -> PreTrainedModel:
    """A model of the teacher's class and of another shape, without pooler.

    Embeddings, layers and, where the teacher has one, masked-LM head start as copies of what is
    kept of the teacher's. The student shares no memory with the teacher.

    Where its heads are larger than the teacher's, they attend as the teacher's at the start: their
    new queries are zero and their new values are not read. New keys and values are drawn from
    torch's global random generator, so that there is something to learn from.

    shape: see `choose_shape`, or some of the teacher's layers, which are kept whole.
    importance: of what the teacher consists of. Needed where the shape cuts layers.
    start: "teacher", its weights; "random", those of a new model.
    """
    if not isinstance(shape, StudentShape):
        shape = choose_shape(teacher.model.config, list(shape))
    config = student_config(teacher.model.config, shape)
    kind = type(teacher.model)
    bare = "add_pooling_layer" in inspect.signature(kind).parameters
    student: PreTrainedModel = kind(config, add_pooling_layer=False) if bare else kind(config)
    if start == "random":
        return student
    source = teacher.model.state_dict()
    layers = shape.layers
    if config.model_type == "albert":
        layers = tuple(dict.fromkeys(albert_groups(teacher.model.config, layers)))

    def in_teacher(key: str) -> str:
        return _LAYER.sub(lambda match: str(layers[int(match.group())]), key)

    weights = {key: source[in_teacher(key)].cpu() for key in student.state_dict()}
    if config.model_type in CUTTABLE:
        kept = choose_kept(config.model_type, shape, importance)
        weights = cut(weights, student, shape, kept)
    student.load_state_dict(weights)
    student.tie_weights()
    return student
