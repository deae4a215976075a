"""Recording the queries, keys and values of chosen layers while a model runs.

Hooks record the outputs of the linear layers that compute them. Attention itself remains the fused
kernel, which never stores its scores, and other layers cost nothing.
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
    """Records the inputs of the self-attention of some layers of a model.

    Once attached, it records in every forward pass, and `take` returns the record. Gradients flow
    through the recorded tensors.

    model: an encoder, with or without a head.
    layers: numbers of the layers, 1 being the lowest. May be empty.
    """

    def __init__(self, model: PreTrainedModel, layers: Iterable[int]) -> None:
        self._recorded: dict[tuple[int, int], Tensor] = {}
        self._calls: dict[str, int] = {}
        self._layers = sorted(set(layers))
        encoder = model.base_model
        # By path and call of a linear layer: the layer whose queries (0), keys (1) or values (2) it
        # computes.
        outputs: dict[str, dict[int, tuple[int, int]]] = {}
        for layer in self._layers:
            paths, call = _find_linears(encoder.config, layer)
            for part, path in enumerate(paths):
                outputs.setdefault(path, {})[call] = (layer, part)
        self._handles = [encoder.register_forward_pre_hook(self._start)] if outputs else []
        for path, by_call in outputs.items():
            linear = encoder.get_submodule(path)
            self._handles.append(linear.register_forward_hook(self._make_hook(path, by_call)))

    def take(self) -> dict[int, Attention]:
        """Return the record of the latest forward pass, by number of the layer, and forget it."""
        recorded = {
            layer: Attention(*(self._recorded[layer, part] for part in range(3)))
            for layer in self._layers
        }
        self._recorded.clear()
        return recorded

    def remove(self) -> None:
        """Detach the hooks from the model."""
        for handle in self._handles:
            handle.remove()
        self._recorded.clear()

    def _start(self, *_: Any) -> None:
        # A pass that ran out of memory may have left a record that nobody took.
        self._recorded.clear()
        self._calls.clear()

    def _make_hook(
        self, path: str, by_call: dict[int, tuple[int, int]]
    ) -> Callable[[nn.Module, Any, Tensor], None]:
        def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
            call = self._calls.get(path, 0)
            self._calls[path] = call + 1
            if call in by_call:
                self._recorded[by_call[call]] = output

        return record


def _find_linears(config: PretrainedConfig, layer: int) -> tuple[list[str], int]:
    """Find the linear layers that compute the queries, keys and values of a layer.

    layer: its number, 1 being the lowest.
    RETURNS: paths of the three modules in the encoder, and the number of their call in a forward
        pass that belongs to this layer, 0 being the first.
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
        # The layers of a group share one module, which is called once for each of them.
        groups = albert_groups(config, range(layer))
        place = f"{groups[-1]}.albert_layers.{config.inner_group_num - 1}"
        call = groups.count(groups[-1]) - 1
    parts = (family.layer.query, family.layer.key, family.layer.value)
    return [f"{family.layers}.{place}.{part}" for part in parts], call
