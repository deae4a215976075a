"""Train a teacher on each task of GLUE, distil students from it, and score all of them.

    python -m benchmarks.glue DIR --encoder bert-base-uncased --layers 6 --output training/glue

DIR has a directory for each task, with the TSV files of GLUE: train.tsv and dev.tsv, and in MNLI
dev_matched.tsv and dev_mismatched.tsv. Tasks without a directory are left out. Training is chosen
by the development files' first half, and scored on the second; a task with a test.tsv with labels,
as `benchmarks.glue.sick` writes, is scored on that. The output directory keeps the pipelines: what
is there is not trained again.

The table has a row for each pipeline and a column for each task, as table 1 of Sanh et al. (2019),
"DistilBERT, a distilled version of BERT", arXiv 1910.01108.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import typer
from spacy.language import Language
from spacy.tokens import DocBin
from wasabi import msg

from benchmarks.common.intervals import cell, with_interval
from benchmarks.common.results import report_results, timestamp
from benchmarks.common.rows import ROWS, Plan, make_rows
from benchmarks.glue.tasks import TASKS, Row, Task, read_rows, scorer, write_jsonl
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.pipelines import load_pipeline
from spacy_distil.tables import Table


def main(
    directory: Annotated[Path, typer.Argument(help="Directory of the tasks.")],
    encoder: Annotated[str, typer.Option("--encoder", help="Encoder of the teachers.")],
    output: Annotated[Path, typer.Option("--output", help="Directory of the pipelines.")],
    tasks: Annotated[str, typer.Option("--tasks", help="Names of tasks; all by default.")] = "",
    layers: Annotated[int, typer.Option("--layers", help="Layers of the students.")] = 3,
    pairs: Annotated[int, typer.Option("--pairs", help="Texts in a batch, about.")] = 32,
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the training.")] = 5,
    limit: Annotated[int, typer.Option("--limit", help="Training texts of a task; 0: all.")] = 0,
    results: Annotated[Path | None, typer.Option("--results", help="Directory of results.")] = None,
    stem: Annotated[str, typer.Option("--stem", help="Name of their files.")] = "glue",
) -> None:
    """Train, distil and score on the tasks of GLUE."""
    with friendly_errors():
        date = timestamp()
        chosen = [
            task
            for task in TASKS
            if (directory / task.name).is_dir() and (not tasks or task.name in tasks.split(","))
        ]
        if not chosen:
            raise ConfigError(
                f"{directory} has none of the directories {', '.join(task.name for task in TASKS)}."
            )
        found: dict[str, dict[str, Any]] = {}
        for task in chosen:
            found[task.name] = run_task(
                task,
                directory / task.name,
                output / task.name,
                encoder=encoder,
                layers=layers,
                pairs=pairs,
                epochs=epochs,
                limit=limit,
            )
            msg.info(f"{task.name}: {found[task.name]}")
        report_results(
            [make_table(chosen, found), make_note(chosen)],
            {"results": found},
            output=results,
            stem=stem,
            date=date,
        )


def run_task(
    task: Task,
    source: Path,
    output: Path,
    *,
    encoder: str,
    layers: int,
    pairs: int,
    epochs: float,
    limit: int,
) -> dict[str, Any]:
    """Train and score on one task. RETURNS: score and interval by row."""
    train = list(read_rows(task, source / "train.tsv"))[: limit or None]
    dev, test = split_development(task, source)
    suffix = ".jsonl" if task.second else ".spacy"
    paths = {"train": output / f"train{suffix}", "dev": output / f"dev{suffix}"}
    for name, rows in (("train", train), ("dev", dev)):
        (write_jsonl if task.second else write_docs)(task, rows, paths[name])
    words = sum(len(row.first.split()) for row in train) / len(train)
    steps = max(1, round(epochs * len(train) / pairs))
    made = make_rows(
        Plan(
            task.pipe,
            paths["train"],
            paths["dev"],
            encoder,
            layers,
            words=round(1.1 * pairs * words),
            teacher_steps=steps,
            student_steps=steps,
            output=output,
            settings=(f"--components.{task.pipe}.output", "number") if task.is_regression else (),
        )
    )
    scores = {}
    for row, path in made.items():
        predicted = predict(load_pipeline(path), task, test)
        both = np.array(list(zip([each.label for each in test], predicted, strict=True)))
        scores[row] = with_interval(both, scorer(task))
    return scores


def split_development(task: Task, source: Path) -> tuple[list[Row], list[Row]]:
    """Return the texts by which training is chosen, and the ones to score."""
    files = [list(read_rows(task, source / name)) for name in task.dev]
    if task.dev == ("test.tsv",):
        return list(read_rows(task, source / "dev.tsv")), files[0]
    dev = [row for rows in files for row in rows[: len(rows) // 2]]
    return dev, [row for rows in files for row in rows[len(rows) // 2 :]]


def write_docs(task: Task, rows: Sequence[Row], path: Path) -> None:
    """Write single sentences with their classes."""
    nlp = spacy.blank("en")
    labels = dict.fromkeys(row.label for row in rows)
    docs = DocBin()
    for row in rows:
        doc = nlp.make_doc(row.first)
        doc.cats = {label: float(label == row.label) for label in labels}
        docs.add(doc)
    path.parent.mkdir(parents=True, exist_ok=True)
    docs.to_disk(path)


def predict(nlp: Language, task: Task, rows: Sequence[Row]) -> list[str]:
    """Predict the label of each row, or its score, as it would be written."""
    pipe: Any = nlp.get_pipe(task.pipe)
    if task.second:
        cats = pipe.classify([(row.first, row.second or "") for row in rows])
    else:
        cats = [doc.cats for doc in nlp.pipe((row.first for row in rows), batch_size=64)]
    if task.is_regression:
        return [str(each["score"]) for each in cats]
    return [max(each, key=each.__getitem__) for each in cats]


def make_table(tasks: Sequence[Task], found: dict[str, dict[str, Any]]) -> Table:
    """Write a row for each pipeline and a column for each task, the mean of all before them."""
    rows = []
    for row in ROWS:
        own = [found[task.name][row] for task in tasks]
        teacher = [found[task.name]["teacher"]["score"] for task in tasks]
        mean = np.mean([each["score"] for each in own])
        rows.append([row, f"{mean:.1f} ({100 * mean / np.mean(teacher):.1f} %)", *map(cell, own)])
    return Table("GLUE", ["pipeline", "mean", *(task.name for task in tasks)], rows)


def make_note(tasks: Sequence[Task]) -> str:
    """Say what the numbers are."""
    metrics = "; ".join(f"{task.name}: {task.metric_name}" for task in tasks)
    return (
        f"In %, with 95 % bootstrap intervals; in brackets the share of the teacher's. {metrics}. "
        "copied: the teacher's lowest layers, trained on annotation alone. taught: the same, by "
        "the teacher's soft targets on the same texts. int8: the latter, quantized."
    )


if __name__ == "__main__":
    typer.run(main)
