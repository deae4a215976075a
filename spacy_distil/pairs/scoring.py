"""Scores of classes and numbers of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from spacy.scorer import PRFScore

from spacy_distil.vectors.scoring import spearman


def score_pairs(
    truth: np.ndarray, predicted: np.ndarray, labels: Sequence[str], *, is_exclusive: bool
) -> dict[str, Any]:
    """Score predictions for pairs.

    truth, predicted: (n_pairs, n_labels).
    is_exclusive: whether the largest number of a row decides. If not, there is one column, of
        numbers to rank.
    RETURNS: "pair_acc", "pair_macro_f" and "pair_f_per_type"; or "pair_spearman" and
        "pair_pearson". The first of them is "pair_score", too. Empty without pairs.
    """
    if not len(truth):
        return {}
    if not is_exclusive:
        left, right = truth[:, 0], predicted[:, 0]
        correlation = spearman(left, right)
        return {
            "pair_score": correlation,
            "pair_spearman": correlation,
            "pair_pearson": pearson(left, right),
        }
    right, found = truth.argmax(axis=1), predicted.argmax(axis=1)
    by_label = {}
    for i, label in enumerate(labels):
        score = PRFScore()
        score.tp = int(((found == i) & (right == i)).sum())
        score.fp = int(((found == i) & (right != i)).sum())
        score.fn = int(((found != i) & (right == i)).sum())
        by_label[label] = score.to_dict()
    accuracy = float((right == found).mean())
    return {
        "pair_score": accuracy,
        "pair_acc": accuracy,
        "pair_macro_f": float(np.mean([score["f"] for score in by_label.values()])),
        "pair_f_per_type": by_label,
    }


def pearson(left: np.ndarray, right: np.ndarray) -> float:
    """Compute Pearson's correlation; 0 if one side is constant."""
    centred = [values - values.mean() for values in (left, right)]
    lengths = np.linalg.norm(centred[0]) * np.linalg.norm(centred[1])
    return float(centred[0] @ centred[1] / lengths) if lengths else 0.0
