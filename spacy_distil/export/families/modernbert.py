"""ModernBERT: normalization before each part, rotated positions, attention within a short reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from spacy_distil.engines.onnx import IDS, MASK
from spacy_distil.errors import ConfigError
from spacy_distil.export.graph import ACTIVATIONS, CONTRIB, GraphBuilder, Rounded
from spacy_distil.export.weights import Linear, Norm, Weights

MODEL_TYPES = ("modernbert",)
# By what transformers calls layers in `layer_types`: what it called the base of their rotations
# before it had `rope_parameters`, and the base where none is given.
_THETAS = {
    "full_attention": ("global_rope_theta", 160_000.0),
    "sliding_attention": ("local_rope_theta", 10_000.0),
}


@dataclass(frozen=True)
class Scope:
    """What a layer's attention sees.

    reach: how many pieces on either side; None for the whole window.
    theta: base of the angles that queries and keys are rotated by (Su et al. 2021,
        arXiv 2104.09864, section 3.2.2).
    """

    reach: int | None
    theta: float


@dataclass(frozen=True)
class Layer:
    """One layer, with the normalization before each of its two parts.

    attention_norm: None in the first layer, whose input is normalized already.
    query, key, value: (width, width), the heads side by side.
    attention_out: (width, width).
    up, gate, down: the feed-forward layers: down(activation(up(x)) * gate(x)); up and gate are
        (width, n_hidden), down is (n_hidden, width).
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
    """A whole encoder. Biases that it does without are zeros.

    pieces: (n_vocab, width) float32.
    embedding_norm, final_norm: of the embeddings, and of the last layer's output.
    n_heads: attention heads of a layer.
    n_positions: most pieces in a window, special ones included.
    activation: one of ACTIVATIONS.
    epsilon: of every layer normalization.
    """

    pieces: np.ndarray
    embedding_norm: Norm
    layers: list[Layer]
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
    """The weights of an encoder.

    config: contents of `config.json`, as transformers 4 or 5 writes it.
    Raises ConfigError for an encoder that has no such form, KeyError for a weight that is missing.
    """
    activation = config.get("hidden_activation", "gelu")
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"An encoder with the activation {activation!r} cannot be turned into an ONNX graph: "
            f"expected one of {', '.join(ACTIVATIONS)}."
        )
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
    """A key of _THETAS for each layer."""
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
    rope = (config.get("rope_parameters") or {}).get(kind) or {}
    scaling = config.get("rope_scaling") or {}
    for given in (rope, scaling):
        rope_type = given.get("rope_type", given.get("type", "default"))
        if rope_type != "default":
            raise ConfigError(
                f"An encoder with rope_type = {rope_type!r} cannot be turned into an ONNX graph: "
                "expected 'default'."
            )
    name, usual = _THETAS[kind]
    theta = rope.get("rope_theta")
    if theta is None:
        theta = config.get(name, usual)
    if theta is None:
        # Layers with a reach have that of the others then.
        theta = usual if kind == "full_attention" else _scope(config, "full_attention").theta
    reach = config.get("local_attention", 128) // 2 if kind == "sliding_attention" else None
    return Scope(reach, float(theta))


def _layer(weights: Weights, config: Mapping[str, Any], i: int, kind: str) -> Layer:
    name = f"layers.{i}"
    in_attention = config.get("attention_bias", False)
    in_feed_forward = config.get("mlp_bias", False)
    query, key, value = _split(_linear(weights, f"{name}.attn.Wqkv", in_attention), 3)
    up, gate = _split(_linear(weights, f"{name}.mlp.Wi", in_feed_forward), 2)
    return Layer(
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
    # torch keeps matrices as (n_out, n_in).
    weight = weights[f"{name}.weight"].T
    return Linear(weight, weights[f"{name}.bias"] if has_bias else np.zeros(weight.shape[1], "f"))


def _split(linear: Linear, n: int) -> list[Linear]:
    """The layers that one is made of, side by side."""
    parts = zip(np.split(linear.weight, n, axis=1), np.split(linear.bias, n), strict=True)
    return [Linear(weight, bias) for weight, bias in parts]


def _norm(weights: Weights, config: Mapping[str, Any], name: str) -> Norm:
    weight = weights[f"{name}.weight"]
    has_bias = config.get("norm_bias", False)
    return Norm(weight, weights[f"{name}.bias"] if has_bias else np.zeros_like(weight))


@dataclass(frozen=True)
class Sight:
    """A scope, as names in the graph.

    mask: which pieces are seen: (n_windows,) int32, the first so many of each window; or
        (n_windows, length, length) int32, 1 for those that each piece sees.
    cos, sin: of the rotations, (n_positions, width of a head / 2).
    """

    mask: str
    cos: str
    sin: str


class ModernBertGraph(GraphBuilder):
    weights: ModernBertWeights

    def encode(self) -> str:
        w = self.weights
        sights = {
            scope: self.sight(scope) for scope in dict.fromkeys(each.scope for each in w.layers)
        }
        hidden = self.norm(self.embed_pieces(w.pieces), w.embedding_norm, w.epsilon)
        for i, layer in enumerate(w.layers):
            in_int8 = i in self.precision.layers
            hidden = self.layer(hidden, layer, sights[layer.scope], in_int8=in_int8)
        return self.norm(hidden, w.final_norm, w.epsilon)

    def sight(self, scope: Scope) -> Sight:
        w = self.weights
        cos, sin = rotations(w.n_positions, w.width // w.n_heads, scope.theta)
        mask = self.lengths() if scope.reach is None else self.near(scope.reach)
        return Sight(mask, self.constant(cos), self.constant(sin))

    def near(self, reach: int) -> str:
        """Which pieces are at most so far apart, padding not among them: (n_windows, length,
        length) int32.
        """
        # Not as numbers to add to the scores (attention_bias), one for all heads: ONNX Runtime
        # 1.19 takes these for each window and head only, and reads beyond the end of fewer.
        zero = self.constant(np.array([0]))
        numbers = self.constant(np.arange(self.weights.n_positions, dtype=np.int32))
        row = self.op("Slice", numbers, zero, self.op("Shape", IDS, start=1), zero)
        column = self.op("Unsqueeze", row, self.constant(np.array([1])))
        distance = self.op("Abs", self.op("Sub", row, column))
        is_near = self.op("LessOrEqual", distance, self.scalar(reach, np.int32))
        is_piece = self.op("Cast", MASK, to=TensorProto.BOOL)
        is_piece = self.op("Unsqueeze", is_piece, self.constant(np.array([1])))
        return self.op("Cast", self.op("And", is_near, is_piece), to=TensorProto.INT32)

    def layer(self, hidden: str, layer: Layer, sight: Sight, *, in_int8: bool) -> str:
        """One layer. hidden: (n_windows, length, width)."""
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
            self.rotate(query, sight),
            self.rotate(key, sight),
            value,
            "",
            sight.mask,
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

    def rotate(self, heads: str, sight: Sight) -> str:
        """Rotate queries or keys by their positions. heads: (n_windows, length, width)."""
        first = self.constant(np.array([0]))
        return self.op("RotaryEmbedding", heads, first, sight.cos, sight.sin, domain=CONTRIB)

    def linear(self, value: str, linear: Linear, rounded: Rounded | None) -> str:
        """The product and the bias, where there is one."""
        result = self.product(value, linear, rounded)
        return self.add_bias(result, linear.bias) if linear.bias.any() else result


def rotations(n_positions: int, width: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of all angles of a head, (n_positions, width / 2) float32 each."""
    # Rounded to float32 where torch does it, which shows in the angles far from the start.
    exponents = np.arange(0, width, 2, dtype="f") / np.float32(width)
    steps = 1 / (theta ** exponents.astype("d")).astype("f")
    angles = np.arange(n_positions, dtype="f")[:, None] * steps
    return np.cos(angles), np.sin(angles)
