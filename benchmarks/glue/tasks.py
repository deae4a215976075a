"""The tasks of GLUE (Wang et al. 2019), as their TSV files have them, and their scores."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from spacy_distil.errors import CorpusError
from spacy_distil.pairs.scoring import pearson
from spacy_distil.vectors.scoring import spearman

Metric = Literal["acc", "f1", "mcc", "spearman"]
_NAMES: dict[Metric, str] = {
    "acc": "accuracy",
    "f1": "F1 and accuracy, their mean",
    "mcc": "Matthews correlation",
    "spearman": "Pearson and Spearman correlation, their mean",
}


@dataclass(frozen=True)
class Task:
    """A task.

    name: of its folder.
    first, second: columns of the texts; no second one for single sentences.
    label: column of the label, or of the score.
    metric: GLUE's.
    dev: files to score on.
    positive: the label that F1 is of.
    """

    name: str
    first: str
    second: str | None
    label: str
    metric: Metric
    dev: tuple[str, ...] = ("dev.tsv",)
    positive: str = "1"

    @property
    def pipe(self) -> str:
        """The factory of the pipe."""
        return "textcat" if self.second is None else "distil_pair"

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number."""
        return self.metric == "spearman"

    @property
    def metric_name(self) -> str:
        """GLUE's metric in words."""
        return _NAMES[self.metric]


# In the order of GLUE's tables. SICK's entailment is written into this format by `sick`.
TASKS = (
    Task("CoLA", "sentence", None, "label", "mcc"),
    Task(
        *("MNLI", "sentence1", "sentence2", "gold_label", "acc"),
        dev=("dev_matched.tsv", "dev_mismatched.tsv"),
    ),
    Task("MRPC", "#1 String", "#2 String", "Quality", "f1"),
    Task("QNLI", "question", "sentence", "label", "acc"),
    Task("QQP", "question1", "question2", "is_duplicate", "f1"),
    Task("RTE", "sentence1", "sentence2", "label", "acc"),
    Task("SST-2", "sentence", None, "label", "acc"),
    Task("STS-B", "sentence1", "sentence2", "score", "spearman"),
    Task("WNLI", "sentence1", "sentence2", "label", "acc"),
    Task("SICK", "sentence1", "sentence2", "label", "acc", dev=("test.tsv",)),
)
# CoLA's files have no names of columns.
_COLA = ("source", "label", "star", "sentence")


@dataclass(frozen=True)
class Row:
    """A text or a pair, with its label as it is written."""

    first: str
    second: str | None
    label: str


def read_rows(task: Task, path: Path) -> Iterator[Row]:
    """Read a TSV file. Rows without a label, which MNLI marks with "-", are left out.

    Raises CorpusError if a column is missing.
    """
    with path.open(encoding="utf8", newline="") as file:
        names = _COLA if task.name == "CoLA" else None
        reader = csv.DictReader(file, names, delimiter="\t", quoting=csv.QUOTE_NONE)
        wanted = [task.first, *([task.second] if task.second else []), task.label]
        if missing := [name for name in wanted if name not in (reader.fieldnames or ())]:
            raise CorpusError(
                f"{path} has no column {missing[0]!r}, but {', '.join(reader.fieldnames or ())}: "
                f"it is not {task.name} in GLUE's format."
            )
        for row in reader:
            # A line may end early.
            if all(row[name] is not None for name in wanted) and row[task.label] != "-":
                yield Row(
                    row[task.first],
                    row[task.second or ""] if task.second else None,
                    row[task.label],
                )


def write_jsonl(task: Task, rows: Sequence[Row], path: Path) -> None:
    """Write pairs as `spacy-distil.LabelledPairs.v1` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf8") as file:
        for row in rows:
            label = (
                {"cats": {"score": float(row.label)}}
                if task.is_regression
                else {"label": row.label}
            )
            file.write(json.dumps({"text": row.first, "other": row.second, **label}) + "\n")


def score(task: Task, truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Compute GLUE's score of a task, in percent."""
    if task.is_regression:
        left, right = (np.array(list(map(float, values))) for values in (truth, predicted))
        return 50 * (spearman(left, right) + pearson(left, right))
    right = np.array([own == other for own, other in zip(truth, predicted, strict=True)])
    accuracy = float(right.mean())
    if task.metric == "acc":
        return 100 * accuracy
    own, found = (np.array([each == task.positive for each in side]) for side in (truth, predicted))
    tp, fp, fn, tn = (
        float((a & b).sum())
        for a, b in ((own, found), (~own, found), (own, ~found), (~own, ~found))
    )
    if task.metric == "f1":
        f1 = 2 * tp / (2 * tp + fp + fn) if tp else 0.0
        return 50 * (f1 + accuracy)
    # Matthews (1975)
    divisor = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return 100 * float((tp * tn - fp * fn) / divisor) if divisor else 0.0


def scorer(task: Task) -> Callable[[np.ndarray], float]:
    """Return `score` of an array of truth and prediction, (n, 2)."""
    return lambda pairs: score(task, pairs[:, 0].tolist(), pairs[:, 1].tolist())
