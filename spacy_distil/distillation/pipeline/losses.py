"""What a student is to learn from its teacher's scores: losses and their gradients, on arrays.

All are KL(teacher || student) of distributions that a temperature T softens, times T squared, which
keeps the gradient's size independent of T, as in Hinton, Vinyals and Dean (2015), "Distilling the
Knowledge in a Neural Network", arXiv 1503.02531. Each is the sum over its rows, and its gradient is
T * (student - teacher), which at T = 1 and with a teacher that is sure is the cross-entropy's.

The arrays may be numpy's or CuPy's, all of one kind. Results have the float format of the student's
scores. Probabilities below LEAST count as LEAST, so that no loss is infinite.
"""

from __future__ import annotations

import math
from typing import Any, cast

from thinc.types import Floats2d, Ints2d
from thinc.util import get_array_module

LEAST = 1e-30
_LOG_LEAST = math.log(LEAST)
# What counts as the lowest score: far below any that matters, and far enough from the lowest float
# to be divided by a small temperature.
_LOWEST_SCORE = -1e30


def softmax_kl(
    probs: Floats2d, labels: Ints2d | None, log_targets: Floats2d, temperature: float
) -> tuple[float, Floats2d]:
    """Of softmax outputs, against the most probable labels of a teacher.

    probs: the student's distributions, not softened, (n, n_labels).
    labels: the student's numbers of the labels that `log_targets` are about, (n, k), no number
        twice in a row; None where these are all labels in order.
    log_targets: the teacher's log-probabilities, not softened, (n, k). Labels that are not listed
        count as impossible, and those that are add up to 1, whatever was left out.
    temperature: T.
    RETURNS (loss, d_logits): the latter (n, n_labels), of the student's logits, not softened.
    """
    log_probs = safe_log(probs)
    if labels is None:
        return scores_kl(log_probs, log_targets, temperature)
    xp = get_array_module(probs)
    log_student = log_softmax(log_probs, temperature)
    log_teacher = log_softmax(_as_like(log_targets, probs), temperature)
    teacher = xp.exp(log_teacher)
    listed = xp.arange(len(labels))[:, None], labels
    d_logits = xp.exp(log_student)
    d_logits[listed] -= teacher
    loss = _divergence(teacher, log_teacher, log_student[listed])
    return loss * temperature**2, d_logits * temperature


def scores_kl(scores: Floats2d, targets: Floats2d, temperature: float) -> tuple[float, Floats2d]:
    """Of scores that a softmax would turn into distributions, on both sides.

    scores: the student's, (n, n_classes).
    targets: the teacher's, (n, n_classes). A class with the lowest float, or minus infinity, on
        either side is impossible there.
    temperature: T.
    RETURNS (loss, d_scores): the latter (n, n_classes).
    """
    xp = get_array_module(scores)
    log_student = log_softmax(scores, temperature)
    log_teacher = log_softmax(_as_like(targets, scores), temperature)
    teacher = xp.exp(log_teacher)
    loss = _divergence(teacher, log_teacher, log_student)
    return loss * temperature**2, (xp.exp(log_student) - teacher) * temperature


def bernoulli_kl(probs: Floats2d, log_odds: Floats2d, temperature: float) -> tuple[float, Floats2d]:
    """Of labels that apply or not each by itself.

    probs: the student's probabilities, not softened, (n, n_labels).
    log_odds: the teacher's logits, not softened, (n, n_labels).
    temperature: T.
    RETURNS (loss, d_logits): the latter (n, n_labels), of the student's logits, not softened.
    """
    xp = get_array_module(probs)
    student = to_log_odds(probs) / temperature
    teacher = xp.clip(_as_like(log_odds, probs), _LOG_LEAST, -_LOG_LEAST) / temperature
    yes, no = _sigmoid(teacher), _sigmoid(-teacher)
    # log sigmoid(x) is -softplus(-x), which leaves no small difference of large numbers.
    loss: Any = yes * (_softplus(-student) - _softplus(-teacher))
    loss += no * (_softplus(student) - _softplus(teacher))
    d_logits = (_sigmoid(student) - yes) * temperature
    return float(loss.sum()) * temperature**2, d_logits


def log_softmax(scores: Floats2d, temperature: float = 1.0) -> Floats2d:
    """Log-probabilities of softened scores, both (n, n_classes), finite for any score but NaN and
    plus infinity.
    """
    xp = get_array_module(scores)
    softened: Any = xp.maximum(scores, _LOWEST_SCORE) / temperature
    softened -= softened.max(axis=1, keepdims=True)
    return softened - xp.log(xp.exp(softened).sum(axis=1, keepdims=True))


def safe_log(probs: Floats2d) -> Floats2d:
    """Logarithms of probabilities that may be zero, of the same shape."""
    xp = get_array_module(probs)
    return xp.log(xp.maximum(probs, LEAST))


def to_log_odds(probs: Floats2d) -> Floats2d:
    """Logits of probabilities that may be zero or one, of the same shape."""
    xp = get_array_module(probs)
    below_one = 1 - xp.finfo(probs.dtype).epsneg
    probs = xp.clip(probs, LEAST, below_one)
    return xp.log(probs) - xp.log1p(-probs)


def _divergence(teacher: Floats2d, log_teacher: Floats2d, log_student: Floats2d) -> float:
    """KL(teacher || student) summed over rows; all (n, k)."""
    xp = get_array_module(teacher)
    difference = xp.maximum(log_teacher, _LOG_LEAST) - xp.maximum(log_student, _LOG_LEAST)
    return float((teacher * difference).sum())


def _as_like(scores: Floats2d, other: Floats2d) -> Floats2d:
    """In the float format of another array."""
    return cast(Floats2d, scores.astype(other.dtype))


def _softplus(scores: Floats2d) -> Floats2d:
    """log(1 + exp(x))."""
    xp = get_array_module(scores)
    return xp.logaddexp(xp.zeros_like(scores), scores)


def _sigmoid(scores: Floats2d) -> Floats2d:
    """1 / (1 + exp(-x)), without overflow."""
    return get_array_module(scores).exp(-_softplus(-scores))
