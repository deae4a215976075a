"""Held-out scores during training."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from accelerate import Accelerator
from torch import Tensor

from spacy_distil.distillation.encoder.distiller import Distiller
from spacy_distil.distillation.encoder.objectives import Encoded
from spacy_distil.distillation.encoder.objectives.vocabulary import vocabulary_rows
from spacy_distil.students.masking import MaskedBatch


@torch.no_grad()
def evaluate(
    distiller: Distiller,
    batches: Iterable[MaskedBatch],
    accelerator: Accelerator,
    summed: Collection[str],
    *,
    step: int,
) -> dict[str, float]:
    """Score the student on all batches of all processes. Each position counts the same.

    summed: names of the objectives whose weighted sum is the total.
    step: the step whose weights and temperatures apply.
    RETURNS: the mean of each objective by its name, and "total", a weighted sum. If pieces are
        masked, also "student_accuracy" and "teacher_accuracy" of the models that have a masked-LM
        head: the share of masked pieces that they predict correctly.
    """
    training = distiller.training
    distiller.eval()
    names = list(distiller.objectives)
    accuracies = ("student_accuracy", "teacher_accuracy")
    # Two rows: sums and numbers of positions. Apple's devices have no float64.
    dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
    sums = torch.zeros(2, len(names) + 2, dtype=dtype, device=accelerator.device)

    def add(column: int, total: Tensor, count: int) -> None:
        sums[0, column] += total
        sums[1, column] += count

    for batch in batches:
        with accelerator.autocast():
            outputs = distiller.encode(batch, step)
            for column, loss in enumerate(distiller.losses(outputs).parts.values()):
                add(column, loss.sum, loss.positions)
            for column, encoded in enumerate((outputs.student, outputs.teacher), start=len(names)):
                if len(batch.masked) and encoded is not None and encoded.head is not None:
                    add(column, _count_correct(encoded, batch), len(batch.masked))
    distiller.train(training)
    sums = accelerator.reduce(sums, reduction="sum")
    means = dict(zip((*names, *accuracies), sums[0] / sums[1].clamp(min=1), strict=True))
    scores = {name: float(means[name]) for name in names}
    scores["total"] = float(distiller.total({name: means[name] for name in summed}, step))
    for column, name in enumerate(accuracies, start=len(names)):
        if sums[1, column] > 0:
            scores[name] = float(means[name])
    return scores


def _count_correct(encoded: Encoded, batch: MaskedBatch) -> Tensor:
    """Count the masked pieces that a head predicts correctly. RETURNS: scalar."""
    features = encoded.vocabulary_features(batch.masked)
    correct = torch.zeros((), device=features.device)
    size = vocabulary_rows(encoded.mlm_head.weight)
    for start in range(0, len(features), size):
        rows = slice(start, start + size)
        predicted = encoded.mlm_head.decode(features[rows]).argmax(1)
        correct += (predicted == batch.labels[rows]).sum()
    return correct
