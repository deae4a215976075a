"""Families of encoders, one form of graph per file: their weights and computation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from spacy_distil.engines.files import WEIGHTS, parse_config
from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.export.families import bert, deberta, modernbert
from spacy_distil.export.graph import GraphBuilder, Precision
from spacy_distil.export.weights import Weights, load_weights
from spacy_distil.runs.digests import Content


class EncoderWeights(Protocol):
    """Weights of an encoder of any family."""

    @property
    def pieces(self) -> np.ndarray:
        """Embeddings of the vocabulary, (n_vocab, n_embedding) float32."""

    @property
    def layers(self) -> Sequence[Any]:
        """Layers as they are applied, lowest first. A shared layer is listed several times."""

    @property
    def width(self) -> int:
        """Width of the hidden states."""


# Functions that read config and weights, by model type.
READERS: dict[str, Callable[[Mapping[str, Any], Weights], EncoderWeights]] = {
    **dict.fromkeys(bert.MODEL_TYPES, bert.read),
    **dict.fromkeys(deberta.MODEL_TYPES, deberta.read),
    **dict.fromkeys(modernbert.MODEL_TYPES, modernbert.read),
}
# Graph builders, by the class of weights.
BUILDERS: dict[type, Callable[[Any, Precision], GraphBuilder]] = {
    bert.BertWeights: bert.BertGraph,
    deberta.DebertaWeights: deberta.DebertaGraph,
    modernbert.ModernBertWeights: modernbert.ModernBertGraph,
}


def read_weights(files: Mapping[str, Content], *, pairs: bool = False) -> EncoderWeights:
    """Read the weights of a saved encoder. They share the memory of its file.

    files: `config.json` and `model.safetensors`, by name.
    pairs: whether the graph is to know a second type of tokens, if the family has one.
    Raises ConfigError for an encoder that no graph can be built for, WeightsError for damaged
    files.
    """
    config = parse_config(files)
    model_type = config["model_type"]
    if model_type not in READERS:
        raise ConfigError(
            f"A {model_type!r} encoder cannot be turned into an ONNX graph: expected one of "
            f"{', '.join(sorted(READERS))}."
        )
    try:
        read = load_weights(files)
        weights = READERS[model_type](config, read)
        if pairs and isinstance(weights, bert.BertWeights):
            return replace(weights, second_type=bert.read_second_type(read))
        return weights
    except KeyError as error:
        raise WeightsError(
            f"{WEIGHTS} and config.json of a {model_type!r} encoder do not fit: {error} is missing."
        ) from error


def build_graph(weights: EncoderWeights, precision: Precision) -> bytes:
    """Build and serialize the graph for `spacy_distil.engines.onnx.OnnxEngine`."""
    return BUILDERS[type(weights)](weights, precision).build()
