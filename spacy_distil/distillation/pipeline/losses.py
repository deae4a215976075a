"""Losses of a student's scores against its teacher's, and their gradients, on arrays.

All losses are KL(teacher || student) of distributions that a temperature T softens, times T
squared, which makes the size of the gradient independent of T, as in Hinton, Vinyals and Dean
(2015), "Distilling the Knowledge in a Neural Network", arXiv 1503.02531. A loss is the sum over its
rows. Its gradient is T * (student - teacher): the gradient of the cross-entropy, if T = 1 and the
teacher is sure.

The arrays are all numpy's or all CuPy's. Results have the float format of the student's scores.
Probabilities below SMALLEST_PROBABILITY count as SMALLEST_PROBABILITY, so no loss is infinite.
"""

from __future__ import annotations

import math
from typing import Any, cast

from thinc.types import Floats2d, Ints2d
from thinc.util import get_array_module

from spacy_distil.softmax import SMALLEST_PROBABILITY, log_softmax, safe_log

_SMALLEST_LOG = math.log(SMALLEST_PROBABILITY)


def softmax_kl(
    probs: Floats2d, labels: Ints2d | None, log_targets: Floats2d, temperature: float
) -> tuple[float, Floats2d]:
    """Compare softmax outputs with the most probable labels of a teacher.

    probs: the student's distributions, not softened, (n, n_labels).
    labels: the student's numbers of the labels in `log_targets`, (n, k), each at most once in a
        row. None means all labels in order.
    log_targets: the teacher's log-probabilities, not softened, (n, k). They are normalized to a sum
        of 1. All other labels count as impossible.
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
    """Compare scores that a softmax would turn into distributions.

    scores: the student's, (n, n_classes).
    targets: the teacher's, (n, n_classes). The lowest float and minus infinity mean, on both sides,
        that a class is impossible.
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
    """Compare labels that apply or do not apply independently of each other.

    probs: the student's probabilities, not softened, (n, n_labels).
    log_odds: the teacher's logits, not softened, (n, n_labels).
    temperature: T.
    RETURNS (loss, d_logits): the latter (n, n_labels), of the student's logits, not softened.
    """
    xp = get_array_module(probs)
    student = to_log_odds(probs) / temperature
    teacher = xp.clip(_as_like(log_odds, probs), _SMALLEST_LOG, -_SMALLEST_LOG) / temperature
    yes, no = _sigmoid(teacher), _sigmoid(-teacher)
    # log sigmoid(x) is -softplus(-x), which avoids small differences of large numbers.
    loss: Any = yes * (_softplus(-student) - _softplus(-teacher))
    loss += no * (_softplus(student) - _softplus(teacher))
    d_logits = (_sigmoid(student) - yes) * temperature
    return float(loss.sum()) * temperature**2, d_logits


def to_log_odds(probs: Floats2d) -> Floats2d:
    """Return the logits of probabilities that may be zero or one."""
    xp = get_array_module(probs)
    below_one = 1 - xp.finfo(probs.dtype).epsneg
    probs = xp.clip(probs, SMALLEST_PROBABILITY, below_one)
    return xp.log(probs) - xp.log1p(-probs)


def _divergence(teacher: Floats2d, log_teacher: Floats2d, log_student: Floats2d) -> float:
    """Return KL(teacher || student), summed over rows. All arguments are (n, k)."""
    xp = get_array_module(teacher)
    difference = xp.maximum(log_teacher, _SMALLEST_LOG) - xp.maximum(log_student, _SMALLEST_LOG)
    return float((teacher * difference).sum())


def _as_like(scores: Floats2d, other: Floats2d) -> Floats2d:
    """Convert scores to the float format of another array."""
    return cast(Floats2d, scores.astype(other.dtype))


def _softplus(scores: Floats2d) -> Floats2d:
    """log(1 + exp(x))."""
    xp = get_array_module(scores)
    return xp.logaddexp(xp.zeros_like(scores), scores)


def _sigmoid(scores: Floats2d) -> Floats2d:
    """1 / (1 + exp(-x)), without overflow."""
    return get_array_module(scores).exp(-_softplus(-scores))
