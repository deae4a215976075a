"""ModernBERT: normalization before each part, rotary positions, local attention in most layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from spacy_distil.engines.onnx import IDS, MASK
from spacy_distil.errors import ConfigError
from spacy_distil.export.graph import CONTRIB, GraphBuilder, Rounded, check_activation
from spacy_distil.export.weights import Linear, Norm, Weights

MODEL_TYPES = ("modernbert",)
# By transformers' kinds of layers (`layer_types`): the setting for the base of their rotations in
# configs without `rope_parameters`, and the default base.
_THETAS = {
    "full_attention": ("global_rope_theta", 160_000.0),
    "sliding_attention": ("local_rope_theta", 10_000.0),
}


@dataclass(frozen=True)
class Scope:
    """The pieces that a layer's attention sees, and how it tells their positions.

    reach: number of pieces on either side; `None` is the whole window.
    theta: base of the angles that queries and keys are rotated by (Su et al. 2021,
        arXiv 2104.09864, section 3.2.2).
    """

    reach: int | None
    theta: float


@dataclass(frozen=True)
class ModernBertLayer:
    """Weights of one layer, with a normalization before each of its two parts.

    attention_norm: `None` in the first layer, whose input is already normalized.
    query, key, value: (width, width), the attention heads side by side.
    attention_out: (width, width).
    up, gate, down: the feed-forward layers: down(activation(up(x)) * gate(x)). up and gate are
        (width, n_neurons), down is (n_neurons, width).
    """

    scope: Scope
    attention_norm: Norm | None
    query: Linear
    key: Linear
    value: Linear
    attention_out: Linear
    feed_forward_norm: Norm
    up: Linear
    gate: Linear
    down: Linear


@dataclass(frozen=True)
class ModernBertWeights:
    """Weights and settings of an encoder. A missing bias is all zeros.

    pieces: (n_vocab, width) float32.
    embedding_norm, final_norm: of the embeddings, and of the last layer's output.
    n_heads: attention heads per layer.
    n_positions: most pieces in a window, special ones included.
    activation: one of ACTIVATIONS.
    epsilon: of every layer normalization.
    """

    pieces: np.ndarray
    embedding_norm: Norm
    layers: list[ModernBertLayer]
    final_norm: Norm
    n_heads: int
    n_positions: int
    activation: str
    epsilon: float

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return int(self.pieces.shape[1])


def read(config: Mapping[str, Any], weights: Weights) -> ModernBertWeights:
    """Read a ModernBERT encoder.

    config: contents of `config.json`, as transformers 4 or 5 writes it.
    Raises ConfigError for an encoder that no graph can be built for, KeyError for a missing weight.
    """
    activation = config.get("hidden_activation", "gelu")
    check_activation(activation)
    return ModernBertWeights(
        pieces=weights["embeddings.tok_embeddings.weight"],
        embedding_norm=_norm(weights, config, "embeddings.norm"),
        layers=[_layer(weights, config, i, kind) for i, kind in enumerate(_kinds(config))],
        final_norm=_norm(weights, config, "final_norm"),
        n_heads=config["num_attention_heads"],
        n_positions=config["max_position_embeddings"],
        activation=activation,
        epsilon=config.get("norm_eps", 1e-5),
    )


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """Find the kind of each layer, a key of `_THETAS`."""
    n_layers = config["num_hidden_layers"]
    kinds = config.get("layer_types")
    if kinds is None:
        every = config.get("global_attn_every_n_layers", 3)
        return ["sliding_attention" if i % every else "full_attention" for i in range(n_layers)]
    if len(kinds) != n_layers or not _THETAS.keys() >= set(kinds):
        raise ConfigError(
            f"An encoder with num_hidden_layers = {n_layers} and layer_types = {kinds} cannot be "
            f"turned into an ONNX graph: expected one of {', '.join(_THETAS)} for each layer."
        )
    return list(kinds)


def _scope(config: Mapping[str, Any], kind: str) -> Scope:
    """Read the scope of a kind of layers, a key of `_THETAS`."""
    rope = (config.get("rope_parameters") or {}).get(kind) or {}
    scaling = config.get("rope_scaling") or {}
    for section in (rope, scaling):
        rope_type = section.get("rope_type", section.get("type", "default"))
        if rope_type != "default":
            raise ConfigError(
                f"An encoder with rope_type = {rope_type!r} cannot be turned into an ONNX graph: "
                "expected 'default'."
            )
    setting, default = _THETAS[kind]
    theta = rope.get("rope_theta")
    if theta is None:
        theta = config.get(setting, default)
    if theta is None:
        # Local layers then take the base of the global ones.
        theta = default if kind == "full_attention" else _scope(config, "full_attention").theta
    reach = config.get("local_attention", 128) // 2 if kind == "sliding_attention" else None
    return Scope(reach, float(theta))


def _layer(weights: Weights, config: Mapping[str, Any], i: int, kind: str) -> ModernBertLayer:
    name = f"layers.{i}"
    in_attention = config.get("attention_bias", False)
    in_feed_forward = config.get("mlp_bias", False)
    query, key, value = _split(_linear(weights, f"{name}.attn.Wqkv", in_attention), 3)
    up, gate = _split(_linear(weights, f"{name}.mlp.Wi", in_feed_forward), 2)
    return ModernBertLayer(
        scope=_scope(config, kind),
        attention_norm=_norm(weights, config, f"{name}.attn_norm") if i else None,
        query=query,
        key=key,
        value=value,
        attention_out=_linear(weights, f"{name}.attn.Wo", in_attention),
        feed_forward_norm=_norm(weights, config, f"{name}.mlp_norm"),
        up=up,
        gate=gate,
        down=_linear(weights, f"{name}.mlp.Wo", in_feed_forward),
    )


def _linear(weights: Weights, name: str, has_bias: bool) -> Linear:
    # torch stores matrices as (n_out, n_in).
    weight = weights[f"{name}.weight"].T
    return Linear(weight, weights[f"{name}.bias"] if has_bias else np.zeros(weight.shape[1], "f"))


def _split(linear: Linear, n: int) -> list[Linear]:
    """Split a linear layer into `n` that stand side by side in it."""
    parts = zip(np.split(linear.weight, n, axis=1), np.split(linear.bias, n), strict=True)
    return [Linear(weight, bias) for weight, bias in parts]


def _norm(weights: Weights, config: Mapping[str, Any], name: str) -> Norm:
    weight = weights[f"{name}.weight"]
    has_bias = config.get("norm_bias", False)
    return Norm(weight, weights[f"{name}.bias"] if has_bias else np.zeros_like(weight))


@dataclass(frozen=True)
class GraphScope:
    """A scope, as names in the graph.

    mask: the pieces to see: (n_windows,) int32, the length of each window; or (n_windows, length,
        length) int32, 1 for the pieces that each piece sees.
    cos, sin: of the rotations, (n_positions, head_size / 2) float32.
    """

    mask: str
    cos: str
    sin: str


class ModernBertGraph(GraphBuilder):
    """Builds the graph of an encoder with `ModernBertWeights`."""

    weights: ModernBertWeights

    def encode(self) -> str:
        w = self.weights
        scopes = {
            scope: self.add_scope(scope) for scope in dict.fromkeys(each.scope for each in w.layers)
        }
        hidden = self.norm(self.embed_pieces(w.pieces), w.embedding_norm, w.epsilon)
        for i, layer in enumerate(w.layers):
            in_int8 = i in self.precision.layers
            hidden = self.layer(hidden, layer, scopes[layer.scope], in_int8=in_int8)
        return self.norm(hidden, w.final_norm, w.epsilon)

    def add_scope(self, scope: Scope) -> GraphScope:
        """Add a scope, which several layers may share."""
        w = self.weights
        cos, sin = rotations(w.n_positions, w.width // w.n_heads, scope.theta)
        mask = self.lengths() if scope.reach is None else self.local_mask(scope.reach)
        return GraphScope(mask, self.constant(cos), self.constant(sin))

    def local_mask(self, reach: int) -> str:
        """Add the mask of local attention: pieces within reach, without padding.

        RETURNS: (n_windows, length, length) int32.
        """
        # Not as an attention_bias for all heads: ONNX Runtime 1.19 expects one for each window and
        # head, and reads beyond the end of a smaller one.
        zero = self.constant(np.array([0]))
        numbers = self.constant(np.arange(self.weights.n_positions, dtype=np.int32))
        row = self.op("Slice", numbers, zero, self.op("Shape", IDS, start=1), zero)
        column = self.op("Unsqueeze", row, self.constant(np.array([1])))
        distance = self.op("Abs", self.op("Sub", row, column))
        is_near = self.op("LessOrEqual", distance, self.scalar(reach, np.int32))
        is_piece = self.op("Cast", MASK, to=TensorProto.BOOL)
        is_piece = self.op("Unsqueeze", is_piece, self.constant(np.array([1])))
        return self.op("Cast", self.op("And", is_near, is_piece), to=TensorProto.INT32)

    def layer(
        self, hidden: str, layer: ModernBertLayer, scope: GraphScope, *, in_int8: bool
    ) -> str:
        """Add one layer. hidden: (n_windows, length, width)."""
        w = self.weights
        inner = hidden
        if layer.attention_norm is not None:
            inner = self.norm(hidden, layer.attention_norm, w.epsilon)
        rounded = self.round_rows(inner) if in_int8 else None
        query, key, value = (
            self.linear(inner, linear, rounded) for linear in (layer.query, layer.key, layer.value)
        )
        attended = self.op(
            "MultiHeadAttention",
            self.rotate(query, scope),
            self.rotate(key, scope),
            value,
            "",
            scope.mask,
            domain=CONTRIB,
            num_heads=w.n_heads,
        )
        rounded = self.round_rows(attended) if in_int8 else None
        hidden = self.op("Add", hidden, self.linear(attended, layer.attention_out, rounded))
        inner = self.norm(hidden, layer.feed_forward_norm, w.epsilon)
        rounded = self.round_rows(inner) if in_int8 else None
        up = self.activate(self.product(inner, layer.up, rounded), layer.up.bias, w.activation)
        inner = self.op("Mul", up, self.linear(inner, layer.gate, rounded))
        rounded = self.round_rows(inner) if in_int8 else None
        return self.op("Add", hidden, self.linear(inner, layer.down, rounded))

    def rotate(self, heads: str, scope: GraphScope) -> str:
        """Rotate queries or keys by their positions. heads: (n_windows, length, width)."""
        first = self.constant(np.array([0]))
        return self.op("RotaryEmbedding", heads, first, scope.cos, scope.sin, domain=CONTRIB)

    def linear(self, value: str, linear: Linear, rounded: Rounded | None) -> str:
        """Add the product and, unless it is all zeros, the bias."""
        result = self.product(value, linear, rounded)
        return self.add_bias(result, linear.bias) if linear.bias.any() else result


def rotations(n_positions: int, head_size: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Compute cosines and sines of a head's angles, (n_positions, head_size / 2) float32 each."""
    # Round to float32 at the same steps as torch: it shows in angles far from the start.
    exponents = np.arange(0, head_size, 2, dtype="f") / np.float32(head_size)
    steps = 1 / (theta ** exponents.astype("d")).astype("f")
    angles = np.arange(n_positions, dtype="f")[:, None] * steps
    return np.cos(angles), np.sin(angles)
