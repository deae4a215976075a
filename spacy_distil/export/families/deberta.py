"""DeBERTa-v2 and v3: attention to contents and, separately, to distances.

The score of a query and a key is the sum of three products: of their contents, of the query with
the distance, and of the distance with the key. Distances in the same bucket share an embedding.
A layer's projections of these embeddings depend on no text, so the graph holds them as constants.
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
from spacy_distil.export.families.post_norm import PostNormGraph, PostNormLayer, read_layer_parts
from spacy_distil.export.graph import ACTIVATIONS, CONTRIB
from spacy_distil.export.weights import Linear, Norm, Weights, linear, norm
from spacy_distil.students.families import LayerParts

MODEL_TYPES = ("deberta-v2",)


_PARTS = LayerParts(
    query="attention.self.query_proj",
    key="attention.self.key_proj",
    value="attention.self.value_proj",
)


@dataclass(frozen=True, kw_only=True)
class DebertaLayer(PostNormLayer):
    """Weights of one layer, with its projections of distances.

    distance_keys, distance_queries: (n_heads, 2 * n_buckets, head_size) float32, the factors of
        queries and keys by distance, as `buckets_by_distance` numbers it.
    """

    distance_keys: np.ndarray
    distance_queries: np.ndarray


@dataclass(frozen=True)
class Convolution:
    """Convolution over each piece's embedding and its two neighbours', behind the first layer.

    linear: (3 * width, width): for the piece before, the piece itself, and the piece after.
    activation: one of ACTIVATIONS, or "tanh".
    norm: of the sum of the convolution and the first layer's output.
    """

    linear: Linear
    activation: str
    norm: Norm


@dataclass(frozen=True)
class DebertaWeights:
    """Weights and settings of an encoder.

    pieces: (n_vocab, n_embedding) float32.
    summand: added to the pieces, float32: (n_positions, n_embedding), or (n_embedding,) without
        absolute positions. `None` without absolute positions and token types. It includes the
        embedding of the first token type, because texts have no other.
    projection: (n_embedding, width) float32; `None` if they are equal.
    embedding_norm: of the sum, after the projection.
    convolution: only the largest encoders have one.
    n_heads: attention heads per layer.
    n_buckets: of distances, in each direction.
    n_positions: most pieces in a window.
    activation: one of ACTIVATIONS.
    epsilon: of every layer normalization.
    """

    pieces: np.ndarray
    summand: np.ndarray | None
    projection: np.ndarray | None
    embedding_norm: Norm
    layers: list[DebertaLayer]
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


def read(config: Mapping[str, Any], weights: Weights) -> DebertaWeights:
    """Read a DeBERTa-v2 encoder.

    config: contents of `config.json`.
    Raises ConfigError for an encoder that no graph can be built for, KeyError for a missing weight.
    """
    check_config(config)
    epsilon = config.get("layer_norm_eps", 1e-7)
    distances = normalize(
        weights["encoder.rel_embeddings.weight"], norm(weights, "encoder.LayerNorm"), epsilon
    )
    return DebertaWeights(
        pieces=weights["embeddings.word_embeddings.weight"],
        summand=_summand(config, weights),
        projection=_projection(config, weights),
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
    """Raise ConfigError for a setting that the graph does not support."""

    def check(setting: str, default: Any, *expected: Any) -> None:
        value = config.get(setting, default)
        if value not in expected:
            raise _unsupported(setting, value, " or ".join(map(repr, expected)))

    # The second argument is transformers' default for a setting that config.json leaves out.
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
        raise _unsupported("pos_att_type", kinds, "'c2p|p2c'")
    n_buckets = config.get("position_buckets", -1)
    if n_buckets < 2:
        raise _unsupported("position_buckets", n_buckets, "at least 2")


def _unsupported(setting: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(
        f"A 'deberta-v2' encoder with {setting} = {value!r} cannot be turned into an ONNX graph: "
        f"expected {expected}."
    )


def _summand(config: Mapping[str, Any], weights: Weights) -> np.ndarray | None:
    """Add up all that is added to the embeddings of pieces: see `DebertaWeights`."""
    summands = []
    if config.get("position_biased_input", True):
        summands.append(weights["embeddings.position_embeddings.weight"])
    if config.get("type_vocab_size", 0):
        summands.append(weights["embeddings.token_type_embeddings.weight"][0])
    return sum(summands[1:], summands[0]) if summands else None


def _projection(config: Mapping[str, Any], weights: Weights) -> np.ndarray | None:
    if config.get("embedding_size", config["hidden_size"]) == config["hidden_size"]:
        return None
    return weights["embeddings.embed_proj.weight"].T


def _layer(
    config: Mapping[str, Any], weights: Weights, i: int, distances: np.ndarray
) -> DebertaLayer:
    """Read one layer. distances: (2 * n_buckets, width) float64, embeddings, normalized."""
    name = f"encoder.layer.{i}"
    parts = read_layer_parts(weights, name, _PARTS)
    if config.get("share_att_key", False):
        key, query = parts["key"], parts["query"]
    else:
        key = linear(weights, f"{name}.attention.self.pos_key_proj")
        query = linear(weights, f"{name}.attention.self.pos_query_proj")

    def project(projection: Linear) -> np.ndarray:
        projected = distances @ projection.weight + projection.bias
        by_head = projected.reshape(len(distances), config["num_attention_heads"], -1)
        return by_head.swapaxes(0, 1).astype("f")

    return DebertaLayer(**parts, distance_keys=project(key), distance_queries=project(query))


def _convolution(config: Mapping[str, Any], weights: Weights) -> Convolution | None:
    if not config.get("conv_kernel_size", 0):
        return None
    # torch stores kernels as (n_out, n_in, 3).
    kernel = weights["encoder.conv.conv.weight"]
    weight = kernel.transpose(2, 1, 0).reshape(-1, len(kernel))
    return Convolution(
        linear=Linear(weight, weights["encoder.conv.conv.bias"]),
        activation=config.get("conv_act", "tanh"),
        norm=norm(weights, "encoder.conv.LayerNorm"),
    )


def normalize(rows: np.ndarray, norm: Norm, epsilon: float) -> np.ndarray:
    """Apply layer normalization to rows, (n, width), in float64."""
    rows = rows - rows.mean(axis=1, keepdims=True, dtype="d")
    deviations = np.sqrt((rows**2).mean(axis=1, keepdims=True) + epsilon)
    return rows / deviations * norm.weight + norm.bias


def buckets_by_distance(n_buckets: int, n_positions: int) -> np.ndarray:
    """Find the bucket of each possible distance, the query's position minus the key's.

    Near distances, up to half of the buckets, have a bucket each. Farther distances share buckets
    by their logarithm, separately in each direction. Buckets grow with the distance.

    n_buckets: in each direction. n_positions: most pieces in a window.
    RETURNS: (2 * n_positions - 1,) int32, from 0 to 2 * n_buckets - 1, the most negative distance
        first.
    """
    buckets = np.arange(1 - n_positions, n_positions)
    n_near = n_buckets // 2
    far = np.abs(buckets) > n_near
    ratios = np.log(np.abs(buckets[far]) / n_near) / np.log((n_positions - 1) / n_near)
    # In float32, as in transformers: whole numbers there must not be rounded up here.
    shared = np.ceil((ratios * (n_near - 1)).astype("f")).astype(int) + n_near
    buckets[far] = np.sign(buckets[far]) * shared
    return (buckets + n_buckets).astype(np.int32)


@dataclass(frozen=True)
class Buckets:
    """Buckets of the distances in a batch's windows, as names in the graph.

    first, end: (1,) int32: the first bucket that occurs, and one past the last.
    of_pairs: (n_windows, n_heads, length, length) int32: the bucket of each query and key, counted
        from `first`.
    """

    first: str
    end: str
    of_pairs: str


class DebertaGraph(PostNormGraph):
    """Builds the graph of an encoder with `DebertaWeights`."""

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
        """Embed pieces: (n_windows, length, width)."""
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
        """Find the buckets of a batch, which all layers share."""
        w = self.weights
        buckets = self.constant(buckets_by_distance(w.n_buckets, w.n_positions))
        shape = self.op("Shape", IDS)
        length = self.op("Gather", shape, self.scalar(1, np.int64))
        # The index of distance 0.
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
        self, hidden: str, layer: DebertaLayer, lengths: str, buckets: Buckets, *, in_int8: bool
    ) -> str:
        """Add one layer. hidden: (n_windows, length, width). lengths: (n_windows,) int32."""
        rounded = self.round_rows(hidden) if in_int8 else None
        query, key, value = (
            self.add_bias(self.product(hidden, linear, rounded), linear.bias)
            for linear in (layer.query, layer.key, layer.value)
        )
        # The scores are sums of three products.
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
        return self.after_attention(hidden, attended, layer, in_int8=in_int8)

    def score_distances(
        self, query: str, key: str, layer: DebertaLayer, buckets: Buckets, scale: float
    ) -> str:
        """Compute the scores of distances, for each query and key.

        query, key: (n_windows, length, width).
        RETURNS: (n_windows, n_heads, length, length).
        """
        query, key = self.split_heads(query), self.split_heads(key)
        # A layer's table serves the longest window. Most windows need a small part of it.
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
        query_scores = self.op("FusedMatMul", query, keys, transB=1, domain=CONTRIB)
        key_scores = self.op("FusedMatMul", queries, key, transB=1, domain=CONTRIB)
        return self.op(
            "Add",
            self.op("GatherElements", query_scores, buckets.of_pairs, axis=3),
            self.op("GatherElements", key_scores, buckets.of_pairs, axis=2),
        )

    def split_heads(self, value: str) -> str:
        """Split attention heads apart: (n_windows, n_heads, length, head_size)."""
        value = self.op("Reshape", value, self.constant(np.array([0, 0, self.weights.n_heads, -1])))
        return self.op("Transpose", value, perm=[0, 2, 1, 3])

    def convolve(self, hidden: str, embedded: str, convolution: Convolution) -> str:
        """Add the convolution behind the first layer.

        hidden, embedded: the first layer's output and input, (n_windows, length, width).
        """
        # Padding counts as zeros, like positions outside the window.
        mask = self.op("Cast", MASK, to=TensorProto.FLOAT)
        mask = self.op("Unsqueeze", mask, self.constant(np.array([2])))
        embedded = self.op("Mul", embedded, mask)
        axis = self.constant(np.array([1]))
        before, after = (
            self.op("Pad", embedded, self.constant(np.array(moves)), "", axis)
            for moves in ([1, -1], [-1, 1])
        )
        neighbours = self.op("Concat", before, embedded, after, axis=2)
        # Always in float32: the encoder has just one such product.
        summand = self.product(neighbours, convolution.linear)
        bias = convolution.linear.bias
        if convolution.activation == "tanh":
            summand = self.op("Tanh", self.add_bias(summand, bias))
        else:
            summand = self.activate(summand, bias, convolution.activation)
        return self.norm(self.op("Add", hidden, summand), convolution.norm, self.weights.epsilon)
