"""Cutting heads, feed-forward neurons and dimensions out of a teacher's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from spacy_distil.errors import ConfigError
from spacy_distil.students.families import CUTTABLE, EMBEDDINGS, Axis
from spacy_distil.students.shapes import StudentShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spacy_distil.students.importance import Importance


@dataclass(frozen=True)
class Kept:
    """What a student keeps of its teacher, as ascending numbers.

    heads: (layers of the student, heads of the student) int64.
    neurons: (layers of the student, neurons of the student) int64.
    dims: (width of the student,) int64, of the hidden states: the same everywhere, since each layer
        adds to what the ones below it made.
    """

    heads: Tensor
    neurons: Tensor
    dims: Tensor


def choose_kept(model_type: str, shape: StudentShape, importance: Importance | None) -> Kept:
    """The most important heads, neurons and dimensions, as many as the student has room for.

    Raises ConfigError where some are to be left out and `importance` is `None`.
    """
    if shape.cuts and importance is None:
        settings = " and ".join(f"student.{name} = {getattr(shape, name)}" for name in shape.cuts)
        raise ConfigError(
            f"{settings}: the teacher has more, and which of them are the important ones is "
            f"measured on text: name a corpus"
        )
    teacher, layers = shape.teacher, list(shape.layers)
    if importance is None:
        n_layers = len(layers)
        heads, neurons = torch.ones(n_layers, teacher.heads), torch.ones(n_layers, teacher.ffn)
        dims = torch.ones(teacher.width)
    else:
        heads, neurons = importance.heads[layers], importance.neurons[layers]
        dims = importance.dims
    if model_type == "mpnet":
        # What it adds to attention by distance belongs to the first, second, ... head of all
        # layers, so that all must keep the same ones.
        heads = heads.sum(dim=0, keepdim=True).expand_as(heads)
    return Kept(_top(heads, shape.heads), _top(neurons, shape.ffn), _top(dims, shape.width))


def _top(importance: Tensor, count: int) -> Tensor:
    """Places of the largest along the last axis, ascending. Of equal ones the first."""
    order = importance.argsort(dim=-1, descending=True, stable=True)
    return order[..., :count].sort(dim=-1).values


def cut(
    weights: Mapping[str, Tensor], student: PreTrainedModel, shape: StudentShape, kept: Kept
) -> dict[str, Tensor]:
    """The student's weights.

    weights: the teacher's, on the CPU, under the names that they have in the student.
    """
    cutter = _Cutter(student, shape, kept)
    return {key: cutter(key, weight) for key, weight in weights.items()}


class _Cutter:
    """Makes one weight of the student at a time. See `cut` for the arguments."""

    def __init__(self, student: PreTrainedModel, shape: StudentShape, kept: Kept) -> None:
        config = student.config
        family = CUTTABLE[config.model_type]
        prefix = "" if student.base_model is student else f"{student.base_model_prefix}."
        self.shape = shape
        self.kept = kept
        self.std = float(config.initializer_range)
        # ELECTRA's embeddings may be narrower than the hidden states; they are then kept whole.
        self.cuts_embeddings = getattr(config, "embedding_size", shape.width) == shape.width
        # By path of a module: what the axes of its weight stand for, its layer, its name there.
        self.places: dict[str, tuple[tuple[Axis, ...], int, str]] = {
            **{f"{prefix}{name}": (axes, 0, name) for name, axes in EMBEDDINGS.items()},
            **{name: (axes, 0, name) for name, axes in family.head.items()},
        }
        for number in range(len(shape.layers)):
            for name, axes in family.layer.axes.items():
                path = f"{prefix}{family.layers}.{number}.{name}"
                self.places[path] = (axes, number, name)
        self.layer = family.layer

    def __call__(self, key: str, weight: Tensor) -> Tensor:
        path, _, parameter = key.rpartition(".")
        axes, number, name = self.places.get(path, ((), 0, ""))
        if parameter == "bias":
            axes = axes[:1]
        for place, axis in enumerate(axes):
            rows = self._rows(axis, number)
            if rows is not None:
                weight = weight.index_select(place, rows)
        return self._widen(weight, name)

    def _rows(self, axis: Axis, number: int) -> Tensor | None:
        """The places to keep along an axis; `None` is all. number: of the student's layer."""
        size = self.shape.teacher.head_size
        if axis == "heads":
            return (self.kept.heads[number][:, None] * size + torch.arange(size)).flatten()
        if axis == "ffn":
            return self.kept.neurons[number]
        if axis == "bias":
            return self.kept.heads[0]
        if axis == "width" or (axis == "embedding" and self.cuts_embeddings):
            return self.kept.dims
        return None

    def _widen(self, weight: Tensor, name: str) -> Tensor:
        """Fill up heads that are larger than the teacher's, so that they attend as before."""
        small, large = self.shape.teacher.head_size, self.shape.shape.head_size
        layer = self.layer
        if small == large:
            return weight
        if name == layer.attention_out and weight.dim() == 2:
            return F.pad(weight.unflatten(1, (-1, small)), (0, large - small)).flatten(1)
        if name not in (layer.query, layer.key, layer.value):
            return weight
        by_head = weight.unflatten(0, (-1, small))
        wide = weight.new_zeros(by_head.shape[0], large, *weight.shape[1:])
        if name != layer.query and weight.dim() == 2:
            wide.normal_(std=self.std)
        # Scores are divided by the root of the head's size.
        wide[:, :small] = by_head * (math.sqrt(large / small) if name == layer.query else 1)
        return wide.flatten(0, 1)
