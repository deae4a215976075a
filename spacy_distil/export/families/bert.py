"""BERT and its like: normalization after each residual sum, learned positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spacy_distil.engines.files import first_position
from spacy_distil.engines.onnx import IDS
from spacy_distil.errors import ConfigError
from spacy_distil.export.families.post_norm import PostNormGraph
from spacy_distil.export.graph import (
    ACTIVATIONS,
    CONTRIB,
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
    projection: from n_embedding to the width, where there is one.
    layers: in the order in which they are applied. One that is shared is there several times.
    n_heads: attention heads of a layer.
    distance_bias: (n_heads, 2 * n_positions - 1) float32, what is added to the attention that a
        piece pays to another by how far on that one stands, first the farthest before it. None in
        most families.
    activation: one of ACTIVATIONS.
    epsilon: of every layer normalization.
    """

    pieces: np.ndarray
    positions: np.ndarray
    embedding_norm: Norm
    projection: Linear | None
    layers: list[Layer]
    n_heads: int
    distance_bias: np.ndarray | None
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
_ALBERT_LAYER = {
    "query": "encoder.albert_layer_groups.{}.attention.query",
    "key": "encoder.albert_layer_groups.{}.attention.key",
    "value": "encoder.albert_layer_groups.{}.attention.value",
    "attention_out": "encoder.albert_layer_groups.{}.attention.dense",
    "attention_norm": "encoder.albert_layer_groups.{}.attention.LayerNorm",
    "up": "encoder.albert_layer_groups.{}.ffn",
    "down": "encoder.albert_layer_groups.{}.ffn_output",
    "output_norm": "encoder.albert_layer_groups.{}.full_layer_layer_norm",
}
_MPNET_LAYER = {
    **_BERT_LAYER,
    "query": "encoder.layer.{}.attention.attn.q",
    "key": "encoder.layer.{}.attention.attn.k",
    "value": "encoder.layer.{}.attention.attn.v",
    "attention_out": "encoder.layer.{}.attention.attn.o",
    "attention_norm": "encoder.layer.{}.attention.LayerNorm",
}
_LAYERS = {
    "albert": _ALBERT_LAYER,
    "bert": _BERT_LAYER,
    "camembert": _BERT_LAYER,
    "distilbert": _DISTILBERT_LAYER,
    "electra": _BERT_LAYER,
    "mpnet": _MPNET_LAYER,
    "roberta": _BERT_LAYER,
    "xlm-roberta": _BERT_LAYER,
}
_NORMS = ("attention_norm", "output_norm")
MODEL_TYPES = tuple(_LAYERS)
# MPNet sorts distances into so many kinds: in each direction 8 are kinds of their own, and 8 kinds
# share those up to 128 and all beyond. transformers does so whatever a config says.
_DISTANCE_KINDS = 32


def read(config: Mapping[str, Any], weights: Weights) -> BertWeights:
    """The weights of an encoder of one of the families in MODEL_TYPES.

    config: contents of `config.json`.
    Raises ConfigError for an encoder that has no such form, KeyError for a weight that is missing.
    """
    family = config["model_type"]
    # transformers' names for the same settings in DistilBERT's config and everywhere else.
    is_distilbert = family == "distilbert"
    activation = config.get(
        "activation" if is_distilbert else "hidden_act",
        "gelu_new" if family == "albert" else "gelu",
    )
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
    positions = _positions(weights, config)
    return BertWeights(
        pieces=weights["embeddings.word_embeddings.weight"],
        positions=positions,
        embedding_norm=norm(weights, "embeddings.LayerNorm"),
        projection=_projection(weights, family),
        layers=_layers(weights, config),
        n_heads=config["n_heads" if is_distilbert else "num_attention_heads"],
        distance_bias=_distance_bias(weights, len(positions)) if family == "mpnet" else None,
        activation=activation,
        epsilon=config.get("layer_norm_eps", 1e-12),
    )


def _positions(weights: Weights, config: Mapping[str, Any]) -> np.ndarray:
    if config["model_type"] == "mpnet" and config.get("pad_token_id", 1) != 1:
        raise ConfigError(
            f"pad_token_id = {config['pad_token_id']!r} of an 'mpnet' encoder: expected 1. "
            "transformers does not count pieces with this id when it numbers positions, whatever "
            "the config says; an ONNX graph does not look at ids for that."
        )
    positions = weights["embeddings.position_embeddings.weight"][first_position(config) :]
    token_types = weights.get("embeddings.token_type_embeddings.weight")
    return positions if token_types is None else positions + token_types[0]


def _projection(weights: Weights, family: str) -> Linear | None:
    if family == "albert":
        return linear(weights, "encoder.embedding_hidden_mapping_in")
    if "embeddings_project.weight" in weights:
        return linear(weights, "embeddings_project")
    return None


def _layers(weights: Weights, config: Mapping[str, Any]) -> list[Layer]:
    family = config["model_type"]
    names = _LAYERS[family]
    n_layers = config["n_layers" if family == "distilbert" else "num_hidden_layers"]
    if family != "albert":
        return [_layer(weights, names, str(i)) for i in range(n_layers)]
    # What counts as a layer is the application of a whole group, whose layers follow each other.
    n_groups = config["num_hidden_groups"]
    groups = [
        [
            _layer(weights, names, f"{group}.albert_layers.{i}")
            for i in range(config["inner_group_num"])
        ]
        for group in range(n_groups)
    ]
    return [layer for i in range(n_layers) for layer in groups[int(i / (n_layers / n_groups))]]


def _layer(weights: Weights, names: Mapping[str, str], place: str) -> Layer:
    parts: dict[str, Any] = {
        part: (norm if part in _NORMS else linear)(weights, name.format(place))
        for part, name in names.items()
    }
    return Layer(**parts)


def _distance_bias(weights: Weights, n_positions: int) -> np.ndarray:
    """See `BertWeights`."""
    by_kind = weights["encoder.relative_attention_bias.weight"]
    if len(by_kind) < _DISTANCE_KINDS:
        raise ConfigError(
            f"relative_attention_num_buckets = {len(by_kind)}: expected at least "
            f"{_DISTANCE_KINDS}. transformers sorts distances into as many, so that it cannot "
            "encode longer windows either."
        )
    return by_kind[_distance_kinds(np.arange(1 - n_positions, n_positions))].T


def _distance_kinds(distances: np.ndarray) -> np.ndarray:
    """MPNet's kind of each distance. distances: (n,) int64, above zero to what comes later."""
    n_kinds = _DISTANCE_KINDS // 2
    n_exact = n_kinds // 2
    far = np.abs(distances)
    # From 8 to 128 there are as many kinds, two for each doubling.
    shared = np.floor(n_exact + 2 * np.log2(np.maximum(far, n_exact) / n_exact)).astype(np.int64)
    kinds = np.where(far < n_exact, far, np.minimum(shared, n_kinds - 1))
    return kinds + n_kinds * (distances > 0)


class BertGraph(PostNormGraph):
    weights: BertWeights

    def encode(self) -> str:
        masks = [self.lengths()]
        if self.weights.distance_bias is not None:
            masks.append(self.bias_scores(self.weights.distance_bias))
        hidden = self.embed()
        for i, layer in enumerate(self.weights.layers):
            hidden = self.layer(hidden, layer, masks, in_int8=i in self.precision.layers)
        return hidden

    def bias_scores(self, by_distance: np.ndarray) -> str:
        """What is added to the scores of attention, (n_windows, n_heads, length, length).

        by_distance: (n_heads, 2 * n_positions - 1) float32.
        """
        zero = self.scalar(0, np.int64)
        length = self.op("Squeeze", self.op("Shape", IDS, start=1))
        places = self.op("Range", zero, length, self.scalar(1, np.int64))
        column = self.op("Unsqueeze", places, self.constant(np.array([1])))
        middle = self.scalar(by_distance.shape[1] // 2, np.int64)
        distances = self.op("Add", self.op("Sub", places, column), middle)
        bias = self.op("Gather", self.constant(by_distance[None]), distances, axis=2)
        # ONNX Runtime 1.19 gives wrong results where one bias stands for all windows.
        ones = self.constant(np.array([1, 1, 1]))
        windows = self.op("Concat", self.op("Shape", IDS, end=1), ones, axis=0)
        return self.op("Expand", bias, windows)

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

    def layer(self, hidden: str, layer: Layer, masks: Sequence[str], *, in_int8: bool) -> str:
        """One layer.

        hidden: (n_windows, length, width).
        masks: lengths, (n_windows,) int32, and where the scores of attention have a bias, that:
            (n_windows, n_heads, length, length).
        """
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
            *masks,
            domain=CONTRIB,
            num_heads=self.weights.n_heads,
        )
        rounded = self.round_rows(attended) if in_int8 else None
        summand = self.product(attended, layer.attention_out, rounded)
        hidden = self.residual(hidden, summand, layer.attention_out.bias, layer.attention_norm)
        return self.feed_forward(hidden, layer, in_int8=in_int8)
