"""What encoders with a normalization after each residual sum have in common."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from spacy_distil.export.graph import GELU_MINIMUM, GraphBuilder
from spacy_distil.export.weights import Linear, Norm


class PostNormLayer(Protocol):
    """up, down: the feed-forward layers, (width, n_hidden) and (n_hidden, width).

    output_norm: of the sum of what they make and what they get.
    """

    @property
    def up(self) -> Linear: ...

    @property
    def down(self) -> Linear: ...

    @property
    def output_norm(self) -> Norm: ...


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

    def feed_forward(self, hidden: str, layer: PostNormLayer, *, in_int8: bool) -> str:
        """The second half of a layer. hidden: (n_windows, length, width)."""
        rounded = self.round_rows(hidden) if in_int8 else None
        inner = self.activate(
            self.product(hidden, layer.up, rounded), layer.up.bias, self.weights.activation
        )
        bias = layer.down.bias
        rounded = None
        if in_int8:
            minimum = 0.0 if self.weights.activation == "relu" else GELU_MINIMUM
            rounded = self.round_rows(inner, minimum=minimum)
            # What is subtracted from every number before the product comes back here.
            bias = bias + minimum * self.rounded_weight(layer.down.weight).sum(axis=0)
        return self.residual(
            hidden, self.product(inner, layer.down, rounded), bias, layer.output_norm
        )

    def residual(self, hidden: str, summand: str, bias: np.ndarray, norm: Norm) -> str:
        # Not ONNX Runtime's SkipLayerNormalization, which is one operator and several times slower.
        total = self.op("Add", hidden, self.add_bias(summand, bias))
        return self.norm(total, norm, self.weights.epsilon)
