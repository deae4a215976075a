"""Read the weights of encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from spacy_distil.engines.files import WEIGHTS
from spacy_distil.errors import WeightsError

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


def load_weights(files: Mapping[str, bytes]) -> Weights:
    """Read all weights of a saved encoder, in float32.

    files: `model.safetensors`, by its name.
    Raises WeightsError if it is damaged.
    """
    try:
        return {name: np.asarray(array, "f") for name, array in load(files[WEIGHTS]).items()}
    except SafetensorError as error:
        raise WeightsError(f"{WEIGHTS} cannot be read: {error}") from error


def count_parameters(files: Mapping[str, bytes]) -> int:
    """Count the parameters of a saved encoder. files: see `load_weights`."""
    return sum(array.size for array in load(files[WEIGHTS]).values())


def linear(weights: Weights, name: str) -> Linear:
    """Read the linear layer of this name."""
    # torch stores matrices as (n_out, n_in).
    return Linear(weights[f"{name}.weight"].T, weights[f"{name}.bias"])


def norm(weights: Weights, name: str) -> Norm:
    """Read the layer normalization of this name."""
    return Norm(weights[f"{name}.weight"], weights[f"{name}.bias"])
