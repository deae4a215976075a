"""BERT and families like it: normalization after each residual sum, learned positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spacy_distil.engines.files import first_position
from spacy_distil.engines.onnx import IDS, SECONDS
from spacy_distil.errors import ConfigError
from spacy_distil.export.families.post_norm import PostNormGraph, PostNormLayer, read_layer_parts
from spacy_distil.export.graph import (
    CONTRIB,
    SHIFTED_STEPS,
    SYMMETRIC_STEPS,
    check_activation,
)
from spacy_distil.export.weights import Linear, Norm, Weights, linear, norm
from spacy_distil.students.families import FAMILIES

MODEL_TYPES = tuple(FAMILIES)
# MPNet sorts distances into this many kinds, whatever its config says. In each direction, the 8
# nearest distances have a kind each, and 8 more kinds share the others: up to 128, and beyond.
_N_DISTANCE_KINDS = 32


@dataclass(frozen=True)
class BertWeights:
    """Weights and settings of an encoder.

    pieces: (n_vocab, n_embedding) float32.
    positions: (n_positions, n_embedding) float32, from the first piece of a window on. They include
        the embedding of the first token type, because single texts have no other.
    embedding_norm: of the sum of pieces and positions.
    projection: from n_embedding to the width; `None` if they are equal.
    layers: in the order in which they are applied. A shared layer is listed several times.
    n_heads: attention heads per layer.
    distance_bias: (n_heads, 2 * n_positions - 1) float32, added to the attention scores by the
        distance from query to key, the most negative first. `None` in most families.
    activation: one of ACTIVATIONS.
    epsilon: of every layer normalization.
    second_type: (n_embedding,) float32, what the embedding of the second token type has more than
        the one of the first; `None` if the graph needs none, or the family has none.
    """

    pieces: np.ndarray
    positions: np.ndarray
    embedding_norm: Norm
    projection: Linear | None
    layers: list[PostNormLayer]
    n_heads: int
    distance_bias: np.ndarray | None
    activation: str
    epsilon: float
    second_type: np.ndarray | None = None

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return int(self.layers[0].query.weight.shape[0])


def read(config: Mapping[str, Any], weights: Weights) -> BertWeights:
    """Read an encoder of one of the MODEL_TYPES.

    config: contents of `config.json`.
    Raises ConfigError for an encoder that no graph can be built for, KeyError for a missing weight.
    """
    family = config["model_type"]
    # DistilBERT's config has its own names for some settings.
    is_distilbert = family == "distilbert"
    activation = config.get(
        "activation" if is_distilbert else "hidden_act",
        "gelu_new" if family == "albert" else "gelu",
    )
    check_activation(activation)
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
            "transformers skips pieces with the id 1 when it numbers positions, whatever the "
            "config says; an ONNX graph does not look at ids for that."
        )
    positions = weights["embeddings.position_embeddings.weight"][first_position(config) :]
    token_types = weights.get("embeddings.token_type_embeddings.weight")
    return positions if token_types is None else positions + token_types[0]


def read_second_type(weights: Weights) -> np.ndarray | None:
    """Read what the embedding of the second token type has more than the first one's, if any."""
    token_types = weights.get("embeddings.token_type_embeddings.weight")
    if token_types is None or len(token_types) < 2:
        return None
    return token_types[1] - token_types[0]


def _projection(weights: Weights, model_type: str) -> Linear | None:
    name = FAMILIES[model_type].projection
    if name is None or (model_type == "electra" and f"{name}.weight" not in weights):
        return None
    return linear(weights, name)


def _layers(weights: Weights, config: Mapping[str, Any]) -> list[PostNormLayer]:
    """Read all layers in the order in which they are applied."""
    model_type = config["model_type"]
    family = FAMILIES[model_type]

    def read_layer(place: str) -> PostNormLayer:
        return PostNormLayer(**read_layer_parts(weights, f"{family.layers}.{place}", family.layer))

    n_layers = config["n_layers" if model_type == "distilbert" else "num_hidden_layers"]
    if not family.shares_layers:
        return [read_layer(str(i)) for i in range(n_layers)]
    # Each counted layer is a whole group, whose layers are applied one after the other.
    n_groups = config["num_hidden_groups"]
    groups = [
        [read_layer(f"{group}.albert_layers.{i}") for i in range(config["inner_group_num"])]
        for group in range(n_groups)
    ]
    return [layer for i in range(n_layers) for layer in groups[int(i / (n_layers / n_groups))]]


def _distance_bias(weights: Weights, n_positions: int) -> np.ndarray:
    """Compute MPNet's bias of each distance: see `BertWeights`."""
    by_kind = weights["encoder.relative_attention_bias.weight"]
    if len(by_kind) < _N_DISTANCE_KINDS:
        raise ConfigError(
            f"relative_attention_num_buckets = {len(by_kind)}: expected at least "
            f"{_N_DISTANCE_KINDS}. transformers sorts distances into that many, so it cannot "
            "encode longer windows either."
        )
    return by_kind[_distance_kinds(np.arange(1 - n_positions, n_positions))].T


def _distance_kinds(distances: np.ndarray) -> np.ndarray:
    """Find MPNet's kind of each distance. distances: (n,) int64, positive to later pieces."""
    n_kinds = _N_DISTANCE_KINDS // 2
    n_exact = n_kinds // 2
    far = np.abs(distances)
    # The shared kinds cover 8 to 128, two kinds for each doubling.
    shared = np.floor(n_exact + 2 * np.log2(np.maximum(far, n_exact) / n_exact)).astype(np.int64)
    kinds = np.where(far < n_exact, far, np.minimum(shared, n_kinds - 1))
    return kinds + n_kinds * (distances > 0)


def attention_bias(layer: PostNormLayer) -> np.ndarray:
    """Join the biases of query, key and value: (3 * width,)."""
    return np.concatenate([linear.bias for linear in (layer.query, layer.key, layer.value)])


class BertGraph(PostNormGraph):
    """Builds the graph of an encoder with `BertWeights`."""

    weights: BertWeights

    @property
    def has_seconds(self) -> bool:  # type: ignore[override]
        return self.weights.second_type is not None

    def encode(self) -> str:
        masks = [self.lengths()]
        if self.weights.distance_bias is not None:
            masks.append(self.bias_scores(self.weights.distance_bias))
        hidden = self.embed()
        for i, layer in enumerate(self.weights.layers):
            hidden = self.layer(hidden, layer, masks, in_int8=i in self.precision.layers)
        return hidden

    def recipe(self) -> dict[str, Any] | None:
        """Name the weights, if all is in int8 and has the form of BERT or ALBERT."""
        w, precision = self.weights, self.precision
        is_whole = precision.embeddings and precision.layers >= set(range(len(w.layers)))
        if not is_whole or w.distance_bias is not None:
            return None
        if not 0 < np.float32(w.epsilon) < 1:
            return None
        recipe = {
            "n_heads": w.n_heads,
            "activation": w.activation,
            "epsilon": w.epsilon,
            "embedding_bits": precision.embedding_bits,
            "pieces": self.rounded_pieces(w.pieces),
            "positions": self.constant(w.positions),
            **({} if w.second_type is None else {"second_type": self.constant(w.second_type)}),
            "embedding_norm": self.norm_names(w.embedding_norm),
            "layers": [self.layer_names(layer) for layer in w.layers],
        }
        if w.projection is not None:
            parts = w.projection.weight, w.projection.bias
            recipe["projection"] = [self.constant(part) for part in parts]
        return recipe

    def layer_names(self, layer: PostNormLayer) -> dict[str, Any]:
        def weight(linear: Linear, steps: float = SYMMETRIC_STEPS) -> list[str]:
            return self.int8_weight(linear, steps)

        return {
            "query": weight(layer.query),
            "key": weight(layer.key),
            "value": weight(layer.value),
            "attention_bias": self.constant(attention_bias(layer)),
            "attention_out": [
                *weight(layer.attention_out),
                self.constant(layer.attention_out.bias),
            ],
            "attention_norm": self.norm_names(layer.attention_norm),
            "up": [*weight(layer.up), self.constant(layer.up.bias)],
            "down": [*weight(layer.down, SHIFTED_STEPS), self.constant(self.down_bias(layer))],
            "output_norm": self.norm_names(layer.output_norm),
        }

    def norm_names(self, norm: Norm) -> list[str]:
        return [self.constant(norm.weight), self.constant(norm.bias)]

    def bias_scores(self, by_distance: np.ndarray) -> str:
        """Expand a bias by distance to all attention scores.

        by_distance: (n_heads, 2 * n_positions - 1) float32.
        RETURNS: (n_windows, n_heads, length, length) float32.
        """
        zero = self.scalar(0, np.int64)
        length = self.op("Squeeze", self.op("Shape", IDS, start=1))
        row = self.op("Range", zero, length, self.scalar(1, np.int64))
        column = self.op("Unsqueeze", row, self.constant(np.array([1])))
        middle = self.scalar(by_distance.shape[1] // 2, np.int64)
        distances = self.op("Add", self.op("Sub", row, column), middle)
        bias = self.op("Gather", self.constant(by_distance[None]), distances, axis=2)
        # ONNX Runtime 1.19 gives wrong results if all windows share one bias.
        ones = self.constant(np.array([1, 1, 1]))
        windows = self.op("Concat", self.op("Shape", IDS, end=1), ones, axis=0)
        return self.op("Expand", bias, windows)

    def embed(self) -> str:
        """Embed pieces and positions: (n_windows, length, width)."""
        w = self.weights
        length = self.op("Shape", IDS, start=1)
        zero = self.constant(np.array([0]))
        positions = self.op("Slice", self.constant(w.positions), zero, length, zero)
        hidden = self.op("Add", self.embed_pieces(w.pieces), positions)
        if w.second_type is not None:
            places = self.op(
                "Range",
                self.scalar(0, np.int64),
                self.op("Squeeze", length),
                self.scalar(1, np.int64),
            )
            seconds = self.op("Unsqueeze", SECONDS, self.constant(np.array([1])))
            is_second = self.op("GreaterOrEqual", places, seconds)
            is_second = self.op("Unsqueeze", is_second, self.constant(np.array([2])))
            hidden = self.op(
                "Add",
                hidden,
                self.op("Where", is_second, self.constant(w.second_type), self.scalar(0.0)),
            )
        hidden = self.norm(hidden, w.embedding_norm, w.epsilon)
        if w.projection is not None:
            hidden = self.add_bias(self.product(hidden, w.projection), w.projection.bias)
        return hidden

    def layer(
        self, hidden: str, layer: PostNormLayer, masks: Sequence[str], *, in_int8: bool
    ) -> str:
        """Add one layer.

        hidden: (n_windows, length, width).
        masks: lengths, (n_windows,) int32. In MPNet also the bias of attention scores,
            (n_windows, n_heads, length, length).
        RETURNS: (n_windows, length, width).
        """
        rounded = self.round_rows(hidden) if in_int8 else None
        inputs = (layer.query, layer.key, layer.value)
        attended = self.op(
            "MultiHeadAttention",
            *(self.product(hidden, linear, rounded) for linear in inputs),
            self.constant(attention_bias(layer)),
            *masks,
            domain=CONTRIB,
            num_heads=self.weights.n_heads,
        )
        return self.after_attention(hidden, attended, layer, in_int8=in_int8)
