"""Layers with a normalization after each residual sum, as in BERT and DeBERTa."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from spacy_distil.export.graph import GELU_MINIMUM, GraphBuilder
from spacy_distil.export.weights import Linear, Norm, Weights, linear, norm
from spacy_distil.students.families import LayerParts


@dataclass(frozen=True, kw_only=True)
class PostNormLayer:
    """Weights of one layer.

    query, key, value: (width, width), the attention heads side by side.
    attention_out: (width, width).
    attention_norm: after the first residual sum.
    up, down: the feed-forward layers, (width, n_neurons) and (n_neurons, width).
    output_norm: after the second residual sum.
    """

    query: Linear
    key: Linear
    value: Linear
    attention_out: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm


def read_layer_parts(weights: Weights, layer: str, parts: LayerParts) -> dict[str, Any]:
    """Read the weights of one layer.

    layer: name of the layer. parts: names of its parts.
    RETURNS: arguments of `PostNormLayer`.
    """
    return {
        **{part: linear(weights, f"{layer}.{name}") for part, name in parts.linears.items()},
        **{part: norm(weights, f"{layer}.{name}") for part, name in parts.norms.items()},
    }


class PostNormWeights(Protocol):
    """activation: one of ACTIVATIONS. epsilon: of every layer normalization."""

    @property
    def width(self) -> int: ...

    @property
    def activation(self) -> str: ...

    @property
    def epsilon(self) -> float: ...


class PostNormGraph(GraphBuilder):
    weights: PostNormWeights

    def after_attention(
        self, hidden: str, attended: str, layer: PostNormLayer, *, in_int8: bool
    ) -> str:
        """Add the rest of a layer, behind its attention.

        hidden: the layer's input, (n_windows, length, width).
        attended: output of the attention heads, (n_windows, length, width).
        RETURNS: the layer's output, (n_windows, length, width).
        """
        rounded = self.round_rows(attended) if in_int8 else None
        summand = self.product(attended, layer.attention_out, rounded)
        hidden = self.residual(hidden, summand, layer.attention_out.bias, layer.attention_norm)
        rounded = self.round_rows(hidden) if in_int8 else None
        inner = self.activate(
            self.product(hidden, layer.up, rounded), layer.up.bias, self.weights.activation
        )
        rounded = self.round_rows(inner, minimum=self.minimum) if in_int8 else None
        bias = self.down_bias(layer) if in_int8 else layer.down.bias
        return self.residual(
            hidden, self.product(inner, layer.down, rounded), bias, layer.output_norm
        )

    @property
    def minimum(self) -> float:
        """Lower bound of the activation."""
        return 0.0 if self.weights.activation == "relu" else GELU_MINIMUM

    def down_bias(self, layer: PostNormLayer) -> np.ndarray:
        """Compute the bias of `down` in int8: (width,)."""
        # `round_rows` subtracts the minimum from each number. Add its product back.
        product = self.minimum * self.rounded_weight(layer.down.weight).sum(axis=0)
        return np.asarray(layer.down.bias + product, "f")

    def residual(self, hidden: str, summand: str, bias: np.ndarray, norm: Norm) -> str:
        """Add a residual sum and its normalization."""
        # ONNX Runtime's SkipLayerNormalization does both in one operator, but several times slower.
        total = self.op("Add", hidden, self.add_bias(summand, bias))
        return self.norm(total, norm, self.weights.epsilon)
