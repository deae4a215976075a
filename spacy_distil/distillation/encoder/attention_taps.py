"""Reading the queries, keys and values of chosen layers while a model runs.

They are taken where they are made, at the outputs of the linear layers: attention itself stays the
fused kernel that never writes its scores down, and layers that were not chosen cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from spacy_distil.distillation.encoder.objectives.base import Attention
from spacy_distil.errors import ConfigError
from spacy_distil.students.families import FAMILIES
from spacy_distil.students.shapes import albert_groups

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class AttentionTaps:
    """Records what the self-attention of some layers of a model is computed from.

    It is attached to the model once. From then on every forward pass records, and `take` hands the
    record out; gradients flow through what it holds.

    model: an encoder, with or without a head.
    layers: their numbers, 1 being the lowest. May be empty.
    """

    def __init__(self, model: PreTrainedModel, layers: Iterable[int]) -> None:
        self._recorded: dict[tuple[int, int], Tensor] = {}
        self._calls: dict[str, int] = {}
        self._layers = sorted(set(layers))
        encoder = model.base_model
        # Which part (0 queries, 1 keys, 2 values) of which layer a linear layer makes at each call.
        made_at: dict[str, dict[int, tuple[int, int]]] = {}
        for layer in self._layers:
            paths, call = _find_linears(encoder.config, layer)
            for part, path in enumerate(paths):
                made_at.setdefault(path, {})[call] = (layer, part)
        self._handles = [encoder.register_forward_pre_hook(self._start)] if made_at else []
        for path, made in made_at.items():
            linear = encoder.get_submodule(path)
            self._handles.append(linear.register_forward_hook(self._make_hook(path, made)))

    def take(self) -> dict[int, Attention]:
        """What the newest forward pass recorded, by number of the layer. It is held no longer."""
        recorded = {
            layer: Attention(*(self._recorded[layer, part] for part in range(3)))
            for layer in self._layers
        }
        self._recorded.clear()
        return recorded

    def remove(self) -> None:
        """Detach it from the model."""
        for handle in self._handles:
            handle.remove()
        self._recorded.clear()

    def _start(self, *_: Any) -> None:
        # Also where a pass was given up, for want of memory, and nobody took what it had recorded.
        self._recorded.clear()
        self._calls.clear()

    def _make_hook(
        self, path: str, made: dict[int, tuple[int, int]]
    ) -> Callable[[nn.Module, Any, Tensor], None]:
        def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
            call = self._calls.get(path, 0)
            self._calls[path] = call + 1
            if call in made:
                self._recorded[made[call]] = output

        return record


def _find_linears(config: PretrainedConfig, layer: int) -> tuple[list[str], int]:
    """What makes the queries, keys and values of a layer: the paths of three modules in the
    encoder, and which of their calls in a forward pass is that layer's, 0 being the first.

    layer: its number, 1 being the lowest.
    """
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"the queries, keys and values of a model of type {config.model_type!r} cannot be "
            f"read; they can in: {', '.join(FAMILIES)}"
        )
    count = config.num_hidden_layers
    if not 1 <= layer <= count:
        raise ConfigError(f"layer {layer}: must be one of the model's layers, from 1 to {count}")
    family = FAMILIES[config.model_type]
    place, call = str(layer - 1), 0
    if family.shares_layers:
        # Layers that follow each other are one module, called once for each.
        groups = albert_groups(config, range(layer))
        place = f"{groups[-1]}.albert_layers.{config.inner_group_num - 1}"
        call = groups.count(groups[-1]) - 1
    parts = (family.layer.query, family.layer.key, family.layer.value)
    return [f"{family.layers}.{place}.{part}" for part in parts], call
