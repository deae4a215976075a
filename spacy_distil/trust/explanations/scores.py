"""The score that explanations explain: the log-odds of a prediction.

Log-odds are log(p / (1 - p)). They exist for every pipe that has a probability, and unlike p or its
logarithm they keep moving where a pipe is sure. Of a yes or no they are the logit itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from spacy.pipeline import TextCategorizer
from spacy.pipeline.textcat_multilabel import MultiLabel_TextCategorizer
from spacy.tokens import Doc

from spacy_distil.softmax import SMALLEST_PROBABILITY, is_softmax, predict_logits

# The float32 of a probability cannot come closer to 1.
_SMALLEST_DOUBT = 1e-8


def log_odds(
    logits: np.ndarray, rows: Sequence[int], classes: Sequence[int]
) -> tuple[float, np.ndarray]:
    """Compute the log-odds that rows have these classes, all together, and their gradient.

    The probability is the product of the rows' own, as a model gives them to each row by itself.

    logits: (n_rows, n_classes).
    rows, classes: of equal length; no row twice.
    RETURNS (score, gradient): the gradient is (n_rows, n_classes) float64.
    """
    own = np.asarray(logits, dtype="d")[list(rows)]
    own -= own.max(axis=1, keepdims=True)
    probs = np.exp(own)
    probs /= probs.sum(axis=1, keepdims=True)
    chosen = np.arange(len(own)), np.asarray(classes)
    others = probs.copy()
    others[chosen] = 0
    # 1 - p, with all of its digits also where p is close to 1.
    doubts = np.maximum(others.sum(axis=1), SMALLEST_PROBABILITY)
    logs = np.log1p(-np.minimum(doubts, 1 - 1e-16))
    sure = doubts > 0.5
    logs[sure] = np.log(np.maximum(probs[chosen][sure], SMALLEST_PROBABILITY))
    total = logs.sum()
    doubt = -np.expm1(total)
    d_own = -probs
    d_own[chosen] = doubts
    gradient = np.zeros(logits.shape)
    gradient[list(rows)] = d_own / doubt
    return float(total - np.log(doubt)), gradient


def predict(pipe: Any, docs: Sequence[Doc]) -> list[np.ndarray]:
    """Predict logits for docs with tokens, as `log_odds` takes them.

    RETURNS: for each doc (n_tokens, n_classes) of a pipe for tokens, (1, n_labels) of a `textcat`,
        and (n_labels, 2), yes and no, of a `textcat_multilabel`.
    """
    if isinstance(pipe, TextCategorizer):
        return read_output(pipe, pipe.model.predict(list(docs)))
    return [pipe.model.ops.to_numpy(logits) for logits in predict_logits(pipe.model, docs)]


def read_output(pipe: Any, output: Any) -> list[np.ndarray]:
    """Turn the output of a pipe's model in training into the arrays of `predict`."""
    to_numpy = pipe.model.ops.to_numpy
    if isinstance(pipe, MultiLabel_TextCategorizer):
        probs = _clip(to_numpy(output))
        return [*np.stack([np.log(probs), np.log1p(-probs)], axis=2)]
    if isinstance(pipe, TextCategorizer):
        return [row[None] for row in _log(to_numpy(output))]
    rows = [to_numpy(part) for part in output]
    return [_log(part) for part in rows] if is_softmax(pipe.model) else rows


def gradient_of_output(pipe: Any, output: Any, d_logits: Sequence[np.ndarray]) -> Any:
    """Turn gradients of the arrays of `read_output` into the gradient that the model takes.

    thinc's softmax takes the gradient of its logits, all other layers the one of their output.
    """
    ops = pipe.model.ops
    if not isinstance(pipe, TextCategorizer):
        return [ops.asarray(each.astype("f")) for each in d_logits]
    d_rows = np.stack(d_logits)
    if isinstance(pipe, MultiLabel_TextCategorizer):
        probs = _clip(ops.to_numpy(output))
        return ops.asarray((d_rows[:, :, 0] / probs - d_rows[:, :, 1] / (1 - probs)).astype("f"))
    d_rows = d_rows[:, 0]
    if not is_softmax(pipe.model):
        d_rows = d_rows / np.maximum(ops.to_numpy(output), SMALLEST_PROBABILITY)
    return ops.asarray(d_rows.astype("f"))


def _clip(probs: np.ndarray) -> np.ndarray:
    return np.clip(probs.astype("d"), SMALLEST_PROBABILITY, 1 - _SMALLEST_DOUBT)


def _log(probs: np.ndarray) -> np.ndarray:
    logs: np.ndarray = np.log(np.maximum(probs.astype("d"), SMALLEST_PROBABILITY))
    return logs
