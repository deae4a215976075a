"""Making a student: some of the teacher's layers, with their weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Literal

from spacy_distil.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spacy_distil.distillation.teachers import Teacher

# "bert.encoder.layer.7.output.dense.weight": the number is the layer's.
_LAYER = re.compile(r"(?<=\.layer\.)\d+(?=\.)")


def choose_layers(
    layers: Literal["first", "even"] | Sequence[int], n_layers: int | None, *, available: int
) -> list[int]:
    """Which of the teacher's layers the student is made of, bottom up.

    layers: "first", the lowest ones; "even", evenly spaced ones from the lowest; or a list of
        layers, 0 being the lowest.
    n_layers: how many; `None` is as many as `layers` lists, or half of those available.
    available: how many the teacher has.
    """
    if not isinstance(layers, str):
        chosen = list(layers)
        if (
            not chosen
            or sorted(set(chosen)) != chosen
            or not 0 <= chosen[0] <= chosen[-1] < available
        ):
            raise ConfigError(
                f"student.layers = {chosen}: must list layers of the teacher from 0 to "
                f"{available - 1}, each once, in ascending order"
            )
        if n_layers not in (None, len(chosen)):
            raise ConfigError(
                f"student.n_layers = {n_layers}, but student.layers lists {len(chosen)}. "
                f"Set n_layers to null"
            )
        return chosen
    count = max(1, available // 2) if n_layers is None else n_layers
    if count > available:
        raise ConfigError(f"student.n_layers = {count}, but the teacher has {available} layers")
    if layers == "first":
        return list(range(count))
    return [index * available // count for index in range(count)]


def make_student(teacher: Teacher, layers: Sequence[int]) -> PreTrainedModel:
    """A model of the teacher's class with only the chosen layers, and no pooler.

    Embeddings, chosen layers and, where the teacher has one, masked-LM head start as copies of the
    teacher's. The student shares no memory with the teacher.
    """
    config = deepcopy(teacher.model.config)
    config.num_hidden_layers = len(layers)
    kind = type(teacher.model)
    bare = "add_pooling_layer" in inspect.signature(kind).parameters
    student: PreTrainedModel = kind(config, add_pooling_layer=False) if bare else kind(config)
    source = teacher.model.state_dict()

    def in_teacher(key: str) -> str:
        return _LAYER.sub(lambda match: str(layers[int(match.group())]), key)

    student.load_state_dict({key: source[in_teacher(key)] for key in student.state_dict()})
    student.tie_weights()
    return student
