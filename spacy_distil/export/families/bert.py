"""BERT and its like: normalization after each residual sum, learned positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spacy_distil.engines.files import first_position
from spacy_distil.engines.onnx import IDS
from spacy_distil.errors import ConfigError
from spacy_distil.export.graph import (
    ACTIVATIONS,
    CONTRIB,
    GELU_MINIMUM,
    GraphBuilder,
    Precision,
)
from spacy_distil.export.weights import Linear, Norm, Weights, linear, norm


@dataclass(frozen=True)
class Layer:
    """One layer, with the normalization after each of its two residual sums.

    query, key, value: (width, width), the heads side by side.
    attention_out: (width, width).
    up, down: the feed-forward layers, (width, n_hidden) and (n_hidden, width).
    """

    query: Linear
    key: Linear
    value: Linear
    attention_out: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm


@dataclass(frozen=True)
class BertWeights:
    """A whole encoder.

    pieces: (n_vocab, n_embedding) float32.
    positions: (n_positions, n_embedding) float32, that of a window's first piece first; the
        embedding of the first token type is added to it, since no text has another.
    embedding_norm: of the sum of the two.
    projection: from n_embedding to the width, where they differ.
    n_heads: attention heads of a layer.
    activation: one of ACTIVATIONS.
    epsilon: of every layer normalization.
    """

    pieces: np.ndarray
    positions: np.ndarray
    embedding_norm: Norm
    projection: Linear | None
    layers: list[Layer]
    n_heads: int
    activation: str
    epsilon: float

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return int(self.layers[0].query.weight.shape[0])


# What transformers calls the parts of a layer, by family.
_BERT_LAYER = {
    "query": "encoder.layer.{}.attention.self.query",
    "key": "encoder.layer.{}.attention.self.key",
    "value": "encoder.layer.{}.attention.self.value",
    "attention_out": "encoder.layer.{}.attention.output.dense",
    "attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "up": "encoder.layer.{}.intermediate.dense",
    "down": "encoder.layer.{}.output.dense",
    "output_norm": "encoder.layer.{}.output.LayerNorm",
}
_DISTILBERT_LAYER = {
    "query": "transformer.layer.{}.attention.q_lin",
    "key": "transformer.layer.{}.attention.k_lin",
    "value": "transformer.layer.{}.attention.v_lin",
    "attention_out": "transformer.layer.{}.attention.out_lin",
    "attention_norm": "transformer.layer.{}.sa_layer_norm",
    "up": "transformer.layer.{}.ffn.lin1",
    "down": "transformer.layer.{}.ffn.lin2",
    "output_norm": "transformer.layer.{}.output_layer_norm",
}
LAYERS = {
    "bert": _BERT_LAYER,
    "camembert": _BERT_LAYER,
    "distilbert": _DISTILBERT_LAYER,
    "electra": _BERT_LAYER,
    "roberta": _BERT_LAYER,
    "xlm-roberta": _BERT_LAYER,
}
_NORMS = ("attention_norm", "output_norm")


def read(config: Mapping[str, Any], weights: Weights) -> BertWeights:
    """The weights of an encoder of one of the families in LAYERS.

    config: contents of `config.json`.
    Raises ConfigError for an encoder that has no such form, KeyError for a weight that is missing.
    """
    family = config["model_type"]
    # transformers' names for the same settings in DistilBERT's config and everywhere else.
    is_distilbert = family == "distilbert"
    activation = config.get("activation" if is_distilbert else "hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"An encoder with the activation {activation!r} cannot be turned into an ONNX graph: "
            f"expected one of {', '.join(ACTIVATIONS)}."
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ConfigError(
            f"An encoder with {config['position_embedding_type']!r} position embeddings cannot be "
            "turned into an ONNX graph: expected absolute ones."
        )
    return BertWeights(
        pieces=weights["embeddings.word_embeddings.weight"],
        positions=_positions(weights, config),
        embedding_norm=norm(weights, "embeddings.LayerNorm"),
        projection=linear(weights, "embeddings_project")
        if "embeddings_project.weight" in weights
        else None,
        layers=[
            _layer(weights, LAYERS[family], i)
            for i in range(config["n_layers" if is_distilbert else "num_hidden_layers"])
        ],
        n_heads=config["n_heads" if is_distilbert else "num_attention_heads"],
        activation=activation,
        epsilon=config.get("layer_norm_eps", 1e-12),
    )


def _positions(weights: Weights, config: Mapping[str, Any]) -> np.ndarray:
    positions = weights["embeddings.position_embeddings.weight"][first_position(config) :]
    token_types = weights.get("embeddings.token_type_embeddings.weight")
    return positions if token_types is None else positions + token_types[0]


def _layer(weights: Weights, names: Mapping[str, str], i: int) -> Layer:
    parts: dict[str, Any] = {
        part: (norm if part in _NORMS else linear)(weights, name.format(i))
        for part, name in names.items()
    }
    return Layer(**parts)


class BertGraph(GraphBuilder):
    def __init__(self, weights: BertWeights, precision: Precision) -> None:
        super().__init__(precision)
        self.weights = weights

    @property
    def width(self) -> int:
        return self.weights.width

    def encode(self) -> str:
        lengths = self.lengths()
        hidden = self.embed()
        for i, layer in enumerate(self.weights.layers):
            hidden = self.layer(hidden, layer, lengths, in_int8=i in self.precision.layers)
        return hidden

    def embed(self) -> str:
        """Embeddings of pieces and positions, (n_windows, length, width)."""
        w = self.weights
        length = self.op("Shape", IDS, start=1)
        zero = self.constant(np.array([0]))
        positions = self.op("Slice", self.constant(w.positions), zero, length, zero)
        hidden = self.op("Add", self.embed_pieces(w.pieces), positions)
        hidden = self.norm(hidden, w.embedding_norm, w.epsilon)
        if w.projection is not None:
            hidden = self.add_bias(self.product(hidden, w.projection), w.projection.bias)
        return hidden

    def layer(self, hidden: str, layer: Layer, lengths: str, *, in_int8: bool) -> str:
        """One layer. hidden: (n_windows, length, width); lengths: (n_windows,) int32."""
        rounded = self.round_rows(hidden) if in_int8 else None
        heads = [
            self.product(hidden, linear, rounded)
            for linear in (layer.query, layer.key, layer.value)
        ]
        biases = [linear.bias for linear in (layer.query, layer.key, layer.value)]
        attended = self.op(
            "MultiHeadAttention",
            *heads,
            self.constant(np.concatenate(biases)),
            lengths,
            domain=CONTRIB,
            num_heads=self.weights.n_heads,
        )
        rounded = self.round_rows(attended) if in_int8 else None
        summand = self.product(attended, layer.attention_out, rounded)
        hidden = self.residual(hidden, summand, layer.attention_out.bias, layer.attention_norm)
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
