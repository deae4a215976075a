"""Cut attention heads, feed-forward neurons and dimensions out of a teacher's weights.

Heads, neurons and dimensions of the hidden states are the *units* of an encoder.
"""

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
class KeptUnits:
    """The teacher's units that a student keeps, as ascending numbers.

    heads: (student's layers, student's heads) int64.
    neurons: (student's layers, student's neurons) int64.
    dims: (student's width,) int64. All layers keep the same dimensions, because each layer adds to
        the hidden states of the layers below.
    """

    heads: Tensor
    neurons: Tensor
    dims: Tensor


def choose_units(model_type: str, shape: StudentShape, importance: Importance | None) -> KeptUnits:
    """Choose the most important units, as many as the student's shape has.

    model_type: family of the teacher.
    importance: `None` if the shape keeps all units.
    Raises ConfigError if the shape drops units and `importance` is `None`.
    """
    if shape.cuts and importance is None:
        settings = " and ".join(f"student.{name} = {getattr(shape, name)}" for name in shape.cuts)
        raise ConfigError(
            f"{settings}: the teacher has more. The student keeps the most important ones, and "
            f"importance is measured on text: name a corpus"
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
        # Its bias by distance has one row per head and serves all layers, so that all layers must
        # keep the same heads.
        heads = heads.sum(dim=0, keepdim=True).expand_as(heads)
    return KeptUnits(_top(heads, shape.heads), _top(neurons, shape.ffn), _top(dims, shape.width))


def _top(importance: Tensor, count: int) -> Tensor:
    """Find the indices of the largest values along the last axis, ascending. Ties: the first."""
    order = importance.argsort(dim=-1, descending=True, stable=True)
    return order[..., :count].sort(dim=-1).values


def cut_weights(
    weights: Mapping[str, Tensor], student: PreTrainedModel, shape: StudentShape, kept: KeptUnits
) -> dict[str, Tensor]:
    """Make the student's weights out of the teacher's.

    weights: the teacher's, on the CPU, under the names that they have in the student.
    student: a model of the student's shape.
    """
    cutter = _Cutter(student, shape, kept)
    return {key: cutter(key, weight) for key, weight in weights.items()}


class _Cutter:
    """Makes one weight of the student at a time. See `cut_weights` for the arguments."""

    def __init__(self, student: PreTrainedModel, shape: StudentShape, kept: KeptUnits) -> None:
        config = student.config
        family = CUTTABLE[config.model_type]
        prefix = "" if student.base_model is student else f"{student.base_model_prefix}."
        self.shape = shape
        self.kept = kept
        self.std = float(config.initializer_range)
        # ELECTRA's embeddings are kept whole if they are narrower than the hidden states.
        self.cuts_embeddings = getattr(config, "embedding_size", shape.width) == shape.width
        # By module path: axes of the module's weight, the student's layer, name in the layer.
        self.modules: dict[str, tuple[tuple[Axis, ...], int, str]] = {
            **{f"{prefix}{name}": (axes, 0, name) for name, axes in EMBEDDINGS.items()},
            **{name: (axes, 0, name) for name, axes in family.mlm_head.axes.items()},
        }
        for layer in range(len(shape.layers)):
            for name, axes in family.layer.axes.items():
                path = f"{prefix}{family.layers}.{layer}.{name}"
                self.modules[path] = (axes, layer, name)
        self.parts = family.layer

    def __call__(self, key: str, weight: Tensor) -> Tensor:
        path, _, parameter = key.rpartition(".")
        axes, layer, name = self.modules.get(path, ((), 0, ""))
        if parameter == "bias":
            axes = axes[:1]
        for dim, axis in enumerate(axes):
            indices = self._kept_indices(axis, layer)
            if indices is not None:
                weight = weight.index_select(dim, indices)
        return self._widen_heads(weight, name)

    def _kept_indices(self, axis: Axis, layer: int) -> Tensor | None:
        """Find the indices to keep along an axis; `None` keeps all. layer: of the student."""
        size = self.shape.teacher.head_size
        if axis == "heads":
            return (self.kept.heads[layer][:, None] * size + torch.arange(size)).flatten()
        if axis == "ffn":
            return self.kept.neurons[layer]
        if axis == "bias":
            return self.kept.heads[0]
        if axis == "width" or (axis == "embedding" and self.cuts_embeddings):
            return self.kept.dims
        return None

    def _widen_heads(self, weight: Tensor, name: str) -> Tensor:
        """Fill up heads that are larger than the teacher's, so that they attend as before."""
        small, large = self.shape.teacher.head_size, self.shape.shape.head_size
        parts = self.parts
        if small == large:
            return weight
        if name == parts.attention_out and weight.dim() == 2:
            return F.pad(weight.unflatten(1, (-1, small)), (0, large - small)).flatten(1)
        if name not in (parts.query, parts.key, parts.value):
            return weight
        by_head = weight.unflatten(0, (-1, small))
        wide = weight.new_zeros(by_head.shape[0], large, *weight.shape[1:])
        if name != parts.query and weight.dim() == 2:
            wide.normal_(std=self.std)
        # Attention divides scores by the square root of the head size.
        wide[:, :small] = by_head * (math.sqrt(large / small) if name == parts.query else 1)
        return wide.flatten(0, 1)
