"""The weights of BERT-shaped encoders in one form, whatever the family calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from spacy_distil.engines.files import WEIGHTS, first_position, parse_config
from spacy_distil.errors import ConfigError, WeightsError

Weights = Mapping[str, np.ndarray]

# Activations of the feed-forward layers that the graph has an operator for.
ACTIVATIONS = ("gelu", "gelu_new", "relu")


@dataclass(frozen=True)
class Linear:
    """y = x @ weight + bias.

    weight: (n_in, n_out) float32.
    bias: (n_out,) float32.
    """

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Norm:
    """Layer normalization; weight and bias: (width,) float32."""

    weight: np.ndarray
    bias: np.ndarray


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
class EncoderWeights:
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
_LAYERS = {
    "bert": _BERT_LAYER,
    "camembert": _BERT_LAYER,
    "distilbert": _DISTILBERT_LAYER,
    "electra": _BERT_LAYER,
    "roberta": _BERT_LAYER,
    "xlm-roberta": _BERT_LAYER,
}
_NORMS = ("attention_norm", "output_norm")


def read_weights(files: Mapping[str, bytes]) -> EncoderWeights:
    """The weights of a saved encoder.

    files: `config.json` and `model.safetensors`, by name.
    Raises ConfigError for an encoder that has no such form, WeightsError for damaged files.
    """
    config = parse_config(files)
    family = config["model_type"]
    if family not in _LAYERS:
        raise ConfigError(
            f"A {family!r} encoder cannot be turned into an ONNX graph: expected one of "
            f"{', '.join(sorted(_LAYERS))}."
        )
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
    try:
        weights = {name: np.asarray(array, "f") for name, array in load(files[WEIGHTS]).items()}
    except SafetensorError as error:
        raise WeightsError(f"{WEIGHTS} cannot be read: {error}") from error
    try:
        return EncoderWeights(
            pieces=weights["embeddings.word_embeddings.weight"],
            positions=_positions(weights, config),
            embedding_norm=_norm(weights, "embeddings.LayerNorm"),
            projection=_linear(weights, "embeddings_project")
            if "embeddings_project.weight" in weights
            else None,
            layers=[
                _layer(weights, _LAYERS[family], i)
                for i in range(config["n_layers" if is_distilbert else "num_hidden_layers"])
            ],
            n_heads=config["n_heads" if is_distilbert else "num_attention_heads"],
            activation=activation,
            epsilon=config.get("layer_norm_eps", 1e-12),
        )
    except KeyError as error:
        raise WeightsError(
            f"{WEIGHTS} and config.json of a {family!r} encoder do not fit: {error} is missing."
        ) from error


def count_parameters(files: Mapping[str, bytes]) -> int:
    """Number of weights of a saved encoder. files: as for `read_weights`."""
    return sum(array.size for array in load(files[WEIGHTS]).values())


def _positions(weights: Weights, config: Mapping[str, Any]) -> np.ndarray:
    positions = weights["embeddings.position_embeddings.weight"][first_position(config) :]
    token_types = weights.get("embeddings.token_type_embeddings.weight")
    return positions if token_types is None else positions + token_types[0]


def _layer(weights: Weights, names: Mapping[str, str], i: int) -> Layer:
    parts: dict[str, Any] = {
        part: (_norm if part in _NORMS else _linear)(weights, name.format(i))
        for part, name in names.items()
    }
    return Layer(**parts)


def _linear(weights: Weights, name: str) -> Linear:
    # torch keeps matrices as (n_out, n_in).
    return Linear(weights[f"{name}.weight"].T, weights[f"{name}.bias"])


def _norm(weights: Weights, name: str) -> Norm:
    return Norm(weights[f"{name}.weight"], weights[f"{name}.bias"])
