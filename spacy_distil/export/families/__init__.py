"""Families of encoders, one per file: their weights, and what they compute with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from spacy_distil.engines.files import WEIGHTS, parse_config
from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.export.families import bert, deberta, modernbert
from spacy_distil.export.graph import GraphBuilder, Precision
from spacy_distil.export.weights import Weights, load_weights


class EncoderWeights(Protocol):
    """What all families have in common."""

    @property
    def pieces(self) -> np.ndarray:
        """Embeddings of the vocabulary, (n_vocab, n_embedding) float32."""

    @property
    def layers(self) -> Sequence[Any]:
        """The layers as they are applied, the lowest first. A shared one is there several times."""

    @property
    def width(self) -> int:
        """Width of the hidden states."""


# By model_type: what reads the weights.
READERS: dict[str, Callable[[Mapping[str, Any], Weights], EncoderWeights]] = {
    **dict.fromkeys(bert.MODEL_TYPES, bert.read),
    **dict.fromkeys(deberta.MODEL_TYPES, deberta.read),
    **dict.fromkeys(modernbert.MODEL_TYPES, modernbert.read),
}
# By what they read: what builds the graph.
BUILDERS: dict[type, Callable[[Any, Precision], GraphBuilder]] = {
    bert.BertWeights: bert.BertGraph,
    deberta.DebertaWeights: deberta.DebertaGraph,
    modernbert.ModernBertWeights: modernbert.ModernBertGraph,
}


def read_weights(files: Mapping[str, bytes]) -> EncoderWeights:
    """The weights of a saved encoder.

    files: `config.json` and `model.safetensors`, by name.
    Raises ConfigError for an encoder that no family here knows, WeightsError for damaged files.
    """
    config = parse_config(files)
    family = config["model_type"]
    if family not in READERS:
        raise ConfigError(
            f"A {family!r} encoder cannot be turned into an ONNX graph: expected one of "
            f"{', '.join(sorted(READERS))}."
        )
    try:
        return READERS[family](config, load_weights(files))
    except KeyError as error:
        raise WeightsError(
            f"{WEIGHTS} and config.json of a {family!r} encoder do not fit: {error} is missing."
        ) from error


def build_graph(weights: EncoderWeights, precision: Precision) -> bytes:
    """The serialized graph that `spacy_distil.engines.onnx.OnnxEngine` runs: see `GraphBuilder`."""
    return BUILDERS[type(weights)](weights, precision).build()
