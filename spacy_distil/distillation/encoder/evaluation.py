"""Held-out scores during training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

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
    batches: Mapping[str, Iterable[MaskedBatch]],
    accelerator: Accelerator,
    summed: Collection[str],
    *,
    step: int,
) -> dict[str, float]:
    """Score the student on all batches of all processes. Each position of a language counts the
    same, and so does each language, however many blocks it has.

    batches: by language. All processes have the same languages, in the same order.
    summed: names of the objectives whose weighted sum is the total.
    step: the step whose weights and temperatures apply.
    RETURNS: the mean of each objective by its name, and "total", a weighted sum. If pieces are
        masked, also "student_accuracy" and "teacher_accuracy" of the models that have a masked-LM
        head: the share of masked pieces that they predict correctly. If there are several
        languages, the same of each, see `scores_by_language`.
    """
    training = distiller.training
    distiller.eval()
    names = list(distiller.objectives)
    accuracies = ("student_accuracy", "teacher_accuracy")
    # For each language, sums and numbers of positions. Apple's devices have no float64.
    dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
    sums = torch.zeros(len(batches), 2, len(names) + 2, dtype=dtype, device=accelerator.device)
    for language_sums, language_batches in zip(sums, batches.values(), strict=True):
        for batch in language_batches:
            with accelerator.autocast():
                _add(language_sums, distiller, batch, step)
    distiller.train(training)
    sums = accelerator.reduce(sums, reduction="sum")
    by_language = sums[:, 0] / sums[:, 1].clamp(min=1)
    columns = (*names, *accuracies)
    known = {name for name, n in zip(columns, sums[:, 1].sum(0), strict=True) if n > 0}

    def describe(row: Tensor) -> dict[str, float]:
        means = dict(zip(columns, row, strict=True))
        total = distiller.total({name: means[name] for name in summed}, step)
        scores = {name: means[name] for name in names} | {"total": total}
        scores |= {name: means[name] for name in accuracies if name in known}
        return {name: float(score) for name, score in scores.items()}

    scores = describe(by_language.mean(0))
    if len(batches) > 1:
        for language, row in zip(batches, by_language, strict=True):
            scores |= {f"{language}/{name}": score for name, score in describe(row).items()}
    return scores


def scores_by_language(scores: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Divide the scores of `evaluate`, which are named LANGUAGE/NAME, by language.

    RETURNS: scores by name, by language. Under "" are the means over all languages.
    """
    divided: dict[str, dict[str, float]] = {"": {}}
    for key, score in scores.items():
        language, _, name = key.rpartition("/")
        divided.setdefault(language, {})[name] = score
    return divided


def _add(sums: Tensor, distiller: Distiller, batch: MaskedBatch, step: int) -> None:
    """Add the losses of a batch, then the masked pieces that each model predicts correctly.

    sums: (2, n_objectives + 2), sums and numbers of positions.
    """

    def add(column: int, total: Tensor, count: int) -> None:
        sums[0, column] += total
        sums[1, column] += count

    outputs = distiller.encode(batch, step)
    losses = distiller.losses(outputs).parts
    for column, loss in enumerate(losses.values()):
        add(column, loss.sum, loss.positions)
    for column, encoded in enumerate((outputs.student, outputs.teacher), start=len(losses)):
        if len(batch.masked) and encoded is not None and encoded.head is not None:
            add(column, _count_correct(encoded, batch), len(batch.masked))


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
