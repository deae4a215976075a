"""Read the weights of encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from spacy_distil.engines.files import WEIGHTS
from spacy_distil.engines.weights_file import read_weights_file
from spacy_distil.errors import WeightsError
from spacy_distil.runs.digests import Content

# The types of numbers in a file that numpy has.
_TYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"},
}
# By transformers' names.
Weights = Mapping[str, np.ndarray]


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


def load_weights(files: Mapping[str, Content]) -> Weights:
    """Read all weights of a saved encoder, in float32. They share the memory of the file.

    files: `model.safetensors`, by its name.
    Raises WeightsError if it is damaged.
    """
    weights = {}
    for name, weight in read_weights_file(files[WEIGHTS]).items():
        if weight.kind not in _TYPES:
            raise WeightsError(
                f"{WEIGHTS} has {name} of type {weight.kind}, expected one of {', '.join(_TYPES)}. "
                "Load and save the pipeline once: that writes F32."
            )
        numbers = np.frombuffer(weight.data, _TYPES[weight.kind])
        weights[name] = np.asarray(numbers.reshape(weight.shape), "f")
    return weights


def count_parameters(files: Mapping[str, Content]) -> int:
    """Count the parameters of a saved encoder. files: see `load_weights`."""
    return sum(prod(weight.shape) for weight in read_weights_file(files[WEIGHTS]).values())


def linear(weights: Weights, name: str) -> Linear:
    """Read the linear layer of this name."""
    # torch stores matrices as (n_out, n_in).
    return Linear(weights[f"{name}.weight"].T, weights[f"{name}.bias"])


def norm(weights: Weights, name: str) -> Norm:
    """Read the layer normalization of this name."""
    return Norm(weights[f"{name}.weight"], weights[f"{name}.bias"])
