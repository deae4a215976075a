"""The distributions of pipes that choose one class for each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spacy.tokens import Doc
from thinc.api import Model
from thinc.types import Floats2d
from thinc.util import get_array_module

SMALLEST_PROBABILITY = 1e-30
# Lower scores count as this one. It is far below any score that matters, and far enough from the
# lowest float to be divided by a small temperature.
_LOWEST_SCORE = -1e30


def output_layer(model: Model) -> Model:
    """Return the layer that makes a model's output, inside wrappers such as `resizable`."""
    while model.layers:
        model = model.layers[-1]
    return model


def is_softmax(model: Model) -> bool:
    """Whether a model ends in thinc's softmax over the classes of each token."""
    layer = output_layer(model)
    return layer.name == "softmax" and "softmax_normalize" in layer.attrs


def log_probabilities(model: Model, docs: Sequence[Doc]) -> list[Floats2d]:
    """Predict the log-probability of each class for each token.

    model: `is_softmax`.
    RETURNS: (n_tokens, n_classes) for each doc.
    """
    return [log_softmax(scores) for scores in predict_logits(model, docs)]


def predict_logits(model: Model, docs: Sequence[Doc]) -> list[Floats2d]:
    """Predict logits, whose softmax has the probability of each class for each token.

    model: returns logits, if it is not `is_softmax`.
    RETURNS: (n_tokens, n_classes) for each doc.
    """
    # The retokenizer leaves a row too many in doc.tensor when it splits a token.
    scores = [row[: len(doc)] for row, doc in zip(model.predict(list(docs)), docs, strict=True)]
    if not is_softmax(model):
        return scores
    attrs = output_layer(model).attrs
    if attrs["softmax_normalize"]:
        return [safe_log(probs) for probs in scores]
    temperature = attrs["softmax_temperature"]
    return scores if temperature == 1 else [logits / temperature for logits in scores]


def log_softmax(scores: Floats2d, temperature: float = 1.0) -> Floats2d:
    """Return the log-probabilities of softened scores, both (n, n_classes).

    They are finite for all scores except NaN and plus infinity.
    """
    xp = get_array_module(scores)
    softened: Any = xp.maximum(scores, _LOWEST_SCORE) / temperature
    softened -= softened.max(axis=1, keepdims=True)
    return softened - xp.log(xp.exp(softened).sum(axis=1, keepdims=True))


def safe_log(probs: Floats2d) -> Floats2d:
    """Return the logarithms of probabilities that may be zero."""
    xp = get_array_module(probs)
    return xp.log(xp.maximum(probs, SMALLEST_PROBABILITY))
