"""Make a student: some of the teacher's layers, whole or cut, with their weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from spacy_distil.students.albert import albert_config, as_albert, random_albert
from spacy_distil.students.families import CUTTABLE, FAMILIES
from spacy_distil.students.pruning import choose_units, cut_weights
from spacy_distil.students.shapes import StudentShape, albert_groups, choose_shape, student_config

if TYPE_CHECKING:
    import numpy as np
    from transformers import PretrainedConfig, PreTrainedModel

    from spacy_distil.students.importance import Importance
    from spacy_distil.students.teachers import Teacher


def make_student(
    teacher: Teacher,
    shape: StudentShape | Sequence[int],
    importance: Importance | None = None,
    *,
    start: Literal["teacher", "random"] = "teacher",
    counts: np.ndarray | None = None,
) -> PreTrainedModel:
    """Make a model of the teacher's class and of another shape, without pooler.

    With shared layers or factorized embeddings, it is an ALBERT instead, see `as_albert`. With
    factorized embeddings, it has no masked-LM head.

    Embeddings, layers and masked-LM head (if the teacher has one) start as copies of the teacher's
    parts. The student shares no memory with the teacher.

    If its attention heads are larger than the teacher's, they attend as the teacher's at the start:
    the new queries are zero, and the output layer ignores the new values. New keys and values are
    drawn from torch's global random generator, so that gradients can flow through them.

    shape: see `choose_shape`. Or a list of the teacher's layers, which are kept whole.
    importance: of the teacher's units. Required if the shape cuts layers.
    start: "teacher" copies weights from the teacher, "random" initializes a new model.
    counts: (n_pieces,), how often each piece occurs in text, for factorized embeddings. `None`
        counts all alike, which is a much worse start.
    """
    if not isinstance(shape, StudentShape):
        shape = choose_shape(teacher.model.config, list(shape))
    config = student_config(teacher.model.config, shape)
    has_head = teacher.has_mlm_head and shape.embedding_size is None
    if shape.is_albert and start == "random":
        return random_albert(albert_config(config, shape), head=has_head)
    student = new_model(teacher.model, config)
    if start == "random":
        return student
    source = teacher.model.state_dict()
    layers = shape.layers
    if config.model_type == "albert":
        layers = tuple(dict.fromkeys(albert_groups(teacher.model.config, layers)))
    # "bert.encoder.layer.7.output.dense.weight": the number of a layer, in ALBERT of a group.
    number = re.compile(rf"(?<={re.escape(FAMILIES[config.model_type].layers)}\.)\d+(?=\.)")

    def name_in_teacher(key: str) -> str:
        return number.sub(lambda match: str(layers[int(match.group())]), key)

    weights = {key: source[name_in_teacher(key)].cpu() for key in student.state_dict()}
    if config.model_type in CUTTABLE:
        kept = choose_units(config.model_type, shape, importance)
        weights = cut_weights(weights, student, shape, kept)
    student.load_state_dict(weights)
    student.tie_weights()
    return as_albert(student, shape, counts) if shape.is_albert else student


def new_model(model: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """Make a model of another's class with random weights, without pooler."""
    model_class = type(model)
    takes_pooler = "add_pooling_layer" in inspect.signature(model_class).parameters
    options = {"add_pooling_layer": False} if takes_pooler else {}
    made: PreTrainedModel = model_class(config, **options)
    return made
