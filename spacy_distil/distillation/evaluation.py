"""Held-out scores while a student trains."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor

from spacy_distil.distillation.batches import Batch
from spacy_distil.distillation.distiller import Distiller
from spacy_distil.distillation.objectives import Encoded

ACCURACY_ROWS = 1024


@torch.no_grad()
def evaluate(
    distiller: Distiller, batches: Iterable[Batch], accelerator: Accelerator
) -> dict[str, float]:
    """Scores over all batches, each position counting the same.

    Returns the mean of each objective by its name; "total", their weighted sum; and, where pieces
    are masked and there are heads, "student_accuracy" and "teacher_accuracy": the share of masked
    pieces guessed right.
    """
    training = distiller.training
    distiller.eval()
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, total: Tensor, count: int) -> None:
        sums[name] = sums.get(name, torch.zeros((), device=total.device)) + total.float()
        counts[name] = counts.get(name, 0) + count

    for batch in batches:
        batch = batch.to(accelerator.device)
        with accelerator.autocast():
            outputs = distiller.encode(batch)
            for name, loss in distiller.losses(outputs).items():
                add(name, loss.mean * loss.positions, loss.positions)
            if len(batch.masked) and outputs.teacher.head and outputs.student.head:
                for name, encoded in (("student", outputs.student), ("teacher", outputs.teacher)):
                    add(f"{name}_accuracy", _right(encoded, batch), len(batch.masked))
    distiller.train(training)
    means = {name: total / max(1, counts[name]) for name, total in sums.items()}
    losses = {name: mean for name, mean in means.items() if name in distiller.objectives}
    scores = {**losses, "total": distiller.total(losses), **means}
    return {name: float(score) for name, score in scores.items()}


def _right(encoded: Encoded, batch: Batch) -> Tensor:
    """How many masked pieces the head guesses right, a few rows of logits at a time."""
    features = encoded.vocabulary_features(batch.masked)
    right = torch.zeros((), device=features.device)
    for start in range(0, len(features), ACCURACY_ROWS):
        rows = slice(start, start + ACCURACY_ROWS)
        right += (encoded.mlm_head.decode(features[rows]).argmax(1) == batch.labels[rows]).sum()
    return right
