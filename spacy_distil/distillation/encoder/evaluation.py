"""Held-out scores while a student trains."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from accelerate import Accelerator
from torch import Tensor

from spacy_distil.distillation.encoder.distiller import Distiller
from spacy_distil.distillation.encoder.objectives import Encoded
from spacy_distil.students.masking import MaskedBatch

ACCURACY_ROWS = 1024


@torch.no_grad()
def evaluate(
    distiller: Distiller,
    batches: Iterable[MaskedBatch],
    accelerator: Accelerator,
    summed: Collection[str],
    *,
    step: int,
) -> dict[str, float]:
    """Scores over all batches of all processes, each position counting the same.

    summed: names of the objectives whose weighted sum is the total.
    step: whose weights and temperatures are taken.
    Returns the mean of each objective by its name; "total", a weighted sum; and, where pieces
    are masked and there are heads, "student_accuracy" and "teacher_accuracy": the share of masked
    pieces guessed right.
    """
    training = distiller.training
    distiller.eval()
    names = list(distiller.objectives)
    accuracies = ("student_accuracy", "teacher_accuracy")
    # Sums and, below them, numbers of positions.
    # Apple's devices have no float64.
    dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
    sums = torch.zeros(2, len(names) + 2, dtype=dtype, device=accelerator.device)

    def add(place: int, total: Tensor, count: int) -> None:
        sums[0, place] += total
        sums[1, place] += count

    for batch in batches:
        with accelerator.autocast():
            outputs = distiller.encode(batch, step)
            for place, loss in enumerate(distiller.losses(outputs).values()):
                add(place, loss.sum, loss.positions)
            for place, encoded in enumerate((outputs.student, outputs.teacher), start=len(names)):
                if len(batch.masked) and encoded is not None and encoded.head is not None:
                    add(place, _right(encoded, batch), len(batch.masked))
    distiller.train(training)
    sums = accelerator.reduce(sums, reduction="sum")
    means = dict(zip((*names, *accuracies), sums[0] / sums[1].clamp(min=1), strict=True))
    scores = {name: float(means[name]) for name in names}
    scores["total"] = float(distiller.total({name: means[name] for name in summed}, step))
    for place, name in enumerate(accuracies, start=len(names)):
        if sums[1, place] > 0:
            scores[name] = float(means[name])
    return scores


def _right(encoded: Encoded, batch: MaskedBatch) -> Tensor:
    """How many masked pieces the head guesses right, a few rows of logits at a time."""
    features = encoded.vocabulary_features(batch.masked)
    right = torch.zeros((), device=features.device)
    for start in range(0, len(features), ACCURACY_ROWS):
        rows = slice(start, start + ACCURACY_ROWS)
        right += (encoded.mlm_head.decode(features[rows]).argmax(1) == batch.labels[rows]).sum()
    return right
