"""Accuracy of pipelines on test documents whose labels exclude each other.

    python -m benchmarks.pipeline_distillation.accuracy TEST.spacy --pipeline teacher=DIR \\
        --pipeline taught=DIR --teacher teacher --output benchmarks/ewt --stem banking77

With a teacher, also what the others keep of its accuracy, with intervals of a paired bootstrap over
the documents. Pipelines of the same NAME are seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from benchmarks.common.comparison import ACCURACY, Subject, has
from benchmarks.pipeline_distillation.table import make_result, save
from spacy_distil.errors import ConfigError, CorpusError, friendly_errors
from spacy_distil.pipelines import check_pipeline
from spacy_distil.report.scores import score_pipeline
from spacy_distil.text.documents import check_test_set

STEM = "accuracy"


def group(values: Sequence[str]) -> dict[str, list[str]]:
    """Pipelines by their names, in the order of the first of each."""
    groups: dict[str, list[str]] = {}
    for value in values:
        name, _, path = (part.strip() for part in value.partition("="))
        if not (name and path):
            raise ConfigError(
                f"--pipeline {value}: expected NAME=PATH, such as taught=training/taught/best."
            )
        check_pipeline(path)
        groups.setdefault(name, []).append(path)
    return groups


def score(groups: dict[str, list[str]], test: Path, teacher: str | None) -> list[Subject]:
    """Score all seeds. teacher: name of that of all others, if there is one."""
    if teacher is not None and teacher not in groups:
        raise ConfigError(
            f"--teacher {teacher}: expected one of the pipelines' names, {', '.join(groups)}."
        )
    subjects = []
    for name, paths in groups.items():
        scores = []
        for path in paths:
            msg.text(f"Scoring {path}")
            scores.append(score_pipeline(path, test))
        teacher_of = "" if teacher is None or name == teacher else teacher
        subject = Subject(name, name, paths, scores, teacher_of)
        if not has(ACCURACY, subject):
            raise CorpusError(
                f"{name} has no accuracy on {test}: expected documents with one label each, and a "
                "pipeline with textcat, which gives each document one."
            )
        subjects.append(subject)
    return subjects


def main(
    test: Annotated[Path, typer.Argument(metavar="TEST.spacy", help="Test documents")],
    pipeline: Annotated[list[str], typer.Option(metavar="NAME=PATH", help="One of the pipelines")],
    output: Annotated[Path, typer.Option(help="Directory for the tables")],
    teacher: Annotated[str | None, typer.Option(help="NAME of the others' teacher")] = None,
    stem: Annotated[str, typer.Option(help="Name of the .md and the .json file")] = STEM,
) -> None:
    """Score pipelines, print the tables and save them."""
    with friendly_errors():
        check_test_set(test)
        save(make_result(score(group(pipeline), test, teacher), test), output, stem)


if __name__ == "__main__":
    typer.run(main)
