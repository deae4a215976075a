"""DeBERTa-v2 and v3: attention to contents and, apart from these, to distances.

The score of a query and a key is the sum of three products: of their contents, of the query with
its distance from the key, and of the distance with the key. Distances share an embedding by
buckets. What these embeddings become in a layer depends on no text, so the graph has it ready.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from spacy_distil.engines.files import longest_window
from spacy_distil.engines.onnx import IDS, MASK
from spacy_distil.errors import ConfigError
from spacy_distil.export.families.post_norm import PostNormGraph
from spacy_distil.export.graph import (
    ACTIVATIONS,
    CONTRIB,
)
from spacy_distil.export.weights import Linear, Norm, Weights, linear, norm

MODEL_TYPES = ("deberta-v2",)


@dataclass(frozen=True)
class Layer:
    """One layer, with the normalization after each of its two residual sums.

    query, key, value: (width, width), the heads side by side.
    distance_keys, distance_queries: (n_heads, 2 * n_buckets, head_size) float32, what queries and
        keys are multiplied by for their distance, as `buckets_by_distance` numbers it.
    attention_out: (width, width).
    up, down: the feed-forward layers, (width, n_hidden) and (n_hidden, width).
    """

    query: Linear
    key: Linear
    value: Linear
    distance_keys: np.ndarray
    distance_queries: np.ndarray
    attention_out: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm


@dataclass(frozen=True)
class Convolution:
    """What the first layer's output gets from each piece's embedding and its two neighbours'.

    linear: (3 * width, width): of the piece before, of the piece itself, of the piece after.
    activation: one of ACTIVATIONS, or "tanh".
    norm: of the sum of both.
    """

    linear: Linear
    activation: str
    norm: Norm


@dataclass(frozen=True)
class DebertaWeights:
    """A whole encoder.

    pieces: (n_vocab, n_embedding) float32.
    summand: what is added to them, float32. (n_positions, n_embedding), or (n_embedding,) for an
        encoder without absolute positions, or None for one without token types too. No text has
        another token type than the first.
    projection: (n_embedding, width) float32, where they differ.
    embedding_norm: of all this.
    convolution: in the largest encoders.
    n_heads: attention heads of a layer.
    n_buckets: of distances, in either direction.
    n_positions: most pieces in a window.
    activation: one of ACTIVATIONS.
    epsilon: of every layer normalization.
    """

    pieces: np.ndarray
    summand: np.ndarray | None
    projection: np.ndarray | None
    embedding_norm: Norm
    layers: list[Layer]
    convolution: Convolution | None
    n_heads: int
    n_buckets: int
    n_positions: int
    activation: str
    epsilon: float

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return len(self.embedding_norm.weight)


# What transformers calls the parts of a layer.
_LINEARS = {
    "query": "attention.self.query_proj",
    "key": "attention.self.key_proj",
    "value": "attention.self.value_proj",
    "attention_out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_NORMS = {"attention_norm": "attention.output.LayerNorm", "output_norm": "output.LayerNorm"}


def read(config: Mapping[str, Any], weights: Weights) -> DebertaWeights:
    """The weights of a DeBERTa-v2 encoder.

    config: contents of `config.json`.
    Raises ConfigError for an encoder that has no such form, KeyError for a weight that is missing.
    """
    check_config(config)
    epsilon = config.get("layer_norm_eps", 1e-7)
    distances = normalize(
        weights["encoder.rel_embeddings.weight"], norm(weights, "encoder.LayerNorm"), epsilon
    )
    return DebertaWeights(
        pieces=weights["embeddings.word_embeddings.weight"],
        summand=_summand(config, weights),
        projection=weights["embeddings.embed_proj.weight"].T
        if config.get("embedding_size", config["hidden_size"]) != config["hidden_size"]
        else None,
        embedding_norm=norm(weights, "embeddings.LayerNorm"),
        layers=[_layer(config, weights, i, distances) for i in range(config["num_hidden_layers"])],
        convolution=_convolution(config, weights),
        n_heads=config["num_attention_heads"],
        n_buckets=config["position_buckets"],
        n_positions=longest_window(config),
        activation=config.get("hidden_act", "gelu"),
        epsilon=epsilon,
    )


def check_config(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for a setting that the graph has no form for."""

    def check(setting: str, default: Any, *expected: Any) -> None:
        value = config.get(setting, default)
        if value not in expected:
            _refuse(setting, value, " or ".join(map(repr, expected)))

    # Defaults are those of transformers, for what config.json may leave out.
    check("relative_attention", False, True)
    check("max_relative_positions", -1, -1)
    check("norm_rel_ebd", "none", "layer_norm")
    check("hidden_act", "gelu", *ACTIVATIONS)
    check("conv_kernel_size", 0, 0, 3)
    if config.get("conv_kernel_size", 0):
        check("conv_groups", 1, 1)
        check("conv_act", "tanh", *ACTIVATIONS, "tanh")
    kinds = config.get("pos_att_type")
    names = kinds.split("|") if isinstance(kinds, str) else kinds or []
    if {name.strip().lower() for name in names} != {"c2p", "p2c"}:
        _refuse("pos_att_type", kinds, "'c2p|p2c'")
    n_buckets = config.get("position_buckets", -1)
    if n_buckets < 2:
        _refuse("position_buckets", n_buckets, "at least 2")


def _refuse(setting: str, value: Any, expected: str) -> None:
    raise ConfigError(
        f"A 'deberta-v2' encoder with {setting} = {value!r} cannot be turned into an ONNX graph: "
        f"expected {expected}."
    )


def _summand(config: Mapping[str, Any], weights: Weights) -> np.ndarray | None:
    parts = []
    if config.get("position_biased_input", True):
        parts.append(weights["embeddings.position_embeddings.weight"])
    if config.get("type_vocab_size", 0):
        parts.append(weights["embeddings.token_type_embeddings.weight"][0])
    return sum(parts[1:], parts[0]) if parts else None


def _layer(config: Mapping[str, Any], weights: Weights, i: int, distances: np.ndarray) -> Layer:
    """distances: (2 * n_buckets, width) float64, their embeddings, normalized."""
    prefix = f"encoder.layer.{i}"
    parts: dict[str, Any] = {
        **{part: linear(weights, f"{prefix}.{name}") for part, name in _LINEARS.items()},
        **{part: norm(weights, f"{prefix}.{name}") for part, name in _NORMS.items()},
    }
    if config.get("share_att_key", False):
        key, query = parts["key"], parts["query"]
    else:
        key = linear(weights, f"{prefix}.attention.self.pos_key_proj")
        query = linear(weights, f"{prefix}.attention.self.pos_query_proj")
    for part, projection in (("distance_keys", key), ("distance_queries", query)):
        projected = distances @ projection.weight + projection.bias
        heads = projected.reshape(len(distances), config["num_attention_heads"], -1)
        parts[part] = heads.swapaxes(0, 1).astype("f")
    return Layer(**parts)


def _convolution(config: Mapping[str, Any], weights: Weights) -> Convolution | None:
    if not config.get("conv_kernel_size", 0):
        return None
    # torch keeps it as (n_out, n_in, 3).
    kernel = weights["encoder.conv.conv.weight"]
    weight = kernel.transpose(2, 1, 0).reshape(-1, len(kernel))
    return Convolution(
        linear=Linear(weight, weights["encoder.conv.conv.bias"]),
        activation=config.get("conv_act", "tanh"),
        norm=norm(weights, "encoder.conv.LayerNorm"),
    )


def normalize(rows: np.ndarray, norm: Norm, epsilon: float) -> np.ndarray:
    """Layer normalization of rows, (n, width), in float64."""
    rows = rows - rows.mean(axis=1, keepdims=True, dtype="d")
    deviations = np.sqrt((rows**2).mean(axis=1, keepdims=True) + epsilon)
    return rows / deviations * norm.weight + norm.bias


def buckets_by_distance(n_buckets: int, n_positions: int) -> np.ndarray:
    """The bucket of each distance, query's position less key's, that two pieces can have.

    Near distances, up to half of the buckets, have one each. Farther ones share them, in each
    direction, by their logarithm. Buckets never go down where distances go up.

    RETURNS: (2 * n_positions - 1,) int32, from 0 to 2 * n_buckets - 1, the most negative distance
        first.
    """
    buckets = np.arange(1 - n_positions, n_positions)
    n_near = n_buckets // 2
    far = np.abs(buckets) > n_near
    ratios = np.log(np.abs(buckets[far]) / n_near) / np.log((n_positions - 1) / n_near)
    # In float32, as in transformers: what is a whole number there is not rounded up here.
    shared = np.ceil((ratios * (n_near - 1)).astype("f")).astype(int) + n_near
    buckets[far] = np.sign(buckets[far]) * shared
    return (buckets + n_buckets).astype(np.int32)


@dataclass(frozen=True)
class Buckets:
    """Buckets of the distances in a batch's windows: names in the graph.

    first, end: (1,) int32: the first that occurs, and the one after the last.
    of_pairs: (n_windows, n_heads, length, length) int32: that of each query and key, counted from
        the first.
    """

    first: str
    end: str
    of_pairs: str


class DebertaGraph(PostNormGraph):
    weights: DebertaWeights

    def encode(self) -> str:
        lengths = self.lengths()
        buckets = self.find_buckets()
        hidden = embedded = self.embed()
        for i, layer in enumerate(self.weights.layers):
            hidden = self.layer(hidden, layer, lengths, buckets, in_int8=i in self.precision.layers)
            if i == 0 and self.weights.convolution is not None:
                hidden = self.convolve(hidden, embedded, self.weights.convolution)
        return hidden

    def embed(self) -> str:
        """Embeddings of pieces, (n_windows, length, width)."""
        w = self.weights
        hidden = self.embed_pieces(w.pieces)
        if w.summand is not None:
            summand = self.constant(w.summand)
            if w.summand.ndim == 2:
                zero = self.constant(np.array([0]))
                summand = self.op("Slice", summand, zero, self.op("Shape", IDS, start=1), zero)
            hidden = self.op("Add", hidden, summand)
        if w.projection is not None:
            hidden = self.op("MatMul", hidden, self.constant(w.projection))
        return self.norm(hidden, w.embedding_norm, w.epsilon)

    def find_buckets(self) -> Buckets:
        """Those of a batch, the same in all layers."""
        w = self.weights
        buckets = self.constant(buckets_by_distance(w.n_buckets, w.n_positions))
        shape = self.op("Shape", IDS)
        length = self.op("Gather", shape, self.scalar(1, np.int64))
        # Distance 0 is in the middle of the buckets.
        middle = self.constant(np.array([w.n_positions - 1]))
        zero, one = self.scalar(0, np.int64), self.scalar(1, np.int64)
        keys = self.op("Range", zero, length, one)
        queries = self.op("Unsqueeze", self.op("Add", keys, middle), self.constant(np.array([1])))
        of_pairs = self.op("Gather", buckets, self.op("Sub", queries, keys))
        farthest = self.op("Sub", length, one)
        first = self.op("Gather", buckets, self.op("Sub", middle, farthest))
        last = self.op("Gather", buckets, self.op("Add", middle, farthest))
        grid = self.op(
            "Concat",
            self.op("Shape", IDS, end=1),
            self.constant(np.array([w.n_heads])),
            self.op("Shape", IDS, start=1),
            self.op("Shape", IDS, start=1),
            axis=0,
        )
        return Buckets(
            first=first,
            end=self.op("Add", last, self.scalar(1, np.int32)),
            of_pairs=self.op("Expand", self.op("Sub", of_pairs, first), grid),
        )

    def layer(
        self, hidden: str, layer: Layer, lengths: str, buckets: Buckets, *, in_int8: bool
    ) -> str:
        """One layer. hidden: (n_windows, length, width); lengths: (n_windows,) int32."""
        rounded = self.round_rows(hidden) if in_int8 else None
        query, key, value = (
            self.add_bias(self.product(hidden, linear, rounded), linear.bias)
            for linear in (layer.query, layer.key, layer.value)
        )
        # What is scaled is the sum of three products.
        scale = 1 / np.sqrt(3 * layer.distance_keys.shape[-1])
        attended = self.op(
            "MultiHeadAttention",
            query,
            key,
            value,
            "",
            lengths,
            self.score_distances(query, key, layer, buckets, scale),
            domain=CONTRIB,
            num_heads=self.weights.n_heads,
            scale=float(scale),
        )
        rounded = self.round_rows(attended) if in_int8 else None
        summand = self.product(attended, layer.attention_out, rounded)
        hidden = self.residual(hidden, summand, layer.attention_out.bias, layer.attention_norm)
        return self.feed_forward(hidden, layer, in_int8=in_int8)

    def score_distances(
        self, query: str, key: str, layer: Layer, buckets: Buckets, scale: float
    ) -> str:
        """What distances add to the scores of queries and keys.

        query, key: (n_windows, length, width).
        RETURNS: (n_windows, n_heads, length, length).
        """
        query, key = self.split_heads(query), self.split_heads(key)
        # The table of a layer is for the longest window; most are much shorter.
        keys, queries = (
            self.op(
                "Slice",
                self.constant(distances * np.float32(scale)),
                buckets.first,
                buckets.end,
                self.constant(np.array([1], np.int32)),
            )
            for distances in (layer.distance_keys, layer.distance_queries)
        )
        # By query and bucket, and by bucket and key.
        to_distance = self.op("FusedMatMul", query, keys, transB=1, domain=CONTRIB)
        to_key = self.op("FusedMatMul", queries, key, transB=1, domain=CONTRIB)
        return self.op(
            "Add",
            self.op("GatherElements", to_distance, buckets.of_pairs, axis=3),
            self.op("GatherElements", to_key, buckets.of_pairs, axis=2),
        )

    def split_heads(self, value: str) -> str:
        """(n_windows, n_heads, length, head_size)."""
        value = self.op("Reshape", value, self.constant(np.array([0, 0, self.weights.n_heads, -1])))
        return self.op("Transpose", value, perm=[0, 2, 1, 3])

    def convolve(self, hidden: str, embedded: str, convolution: Convolution) -> str:
        """hidden, embedded: the first layer's output and its input, (n_windows, length, width)."""
        # Padding is no neighbour: it counts as zeros, as the places outside of a window do.
        mask = self.op("Cast", MASK, to=TensorProto.FLOAT)
        mask = self.op("Unsqueeze", mask, self.constant(np.array([2])))
        embedded = self.op("Mul", embedded, mask)
        axis = self.constant(np.array([1]))
        before, after = (
            self.op("Pad", embedded, self.constant(np.array(moves)), "", axis)
            for moves in ([1, -1], [-1, 1])
        )
        neighbours = self.op("Concat", before, embedded, after, axis=2)
        # In float32: it is one product in a whole encoder.
        summand = self.product(neighbours, convolution.linear)
        bias = convolution.linear.bias
        if convolution.activation == "tanh":
            summand = self.op("Tanh", self.add_bias(summand, bias))
        else:
            summand = self.activate(summand, bias, convolution.activation)
        return self.norm(self.op("Add", hidden, summand), convolution.norm, self.weights.epsilon)
