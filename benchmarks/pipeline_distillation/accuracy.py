"""Compare the accuracy of pipelines on test documents with one label each.

    python -m benchmarks.pipeline_distillation.accuracy TEST.spacy --pipeline teacher=DIR \\
        --pipeline distilled=DIR --teacher teacher --output DIR --stem banking77

With a teacher, the tables also have the retention of the other pipelines, with intervals of a
paired bootstrap over the documents. Pipelines with the same NAME are seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from benchmarks.common.comparison import ACCURACY, ScoredRow, has_score
from benchmarks.common.options import Output, Stem, Test
from benchmarks.common.results import timestamp
from benchmarks.pipeline_distillation.table import report
from spacy_distil.errors import ConfigError, CorpusError, friendly_errors
from spacy_distil.pipelines import check_pipeline
from spacy_distil.report.scores import score_pipeline
from spacy_distil.text.documents import check_test_set

STEM = "accuracy"


def group(values: Sequence[str]) -> dict[str, list[str]]:
    """Group pipelines by name, in the order of the first one of each name.

    values: NAME=PATH.
    """
    groups: dict[str, list[str]] = {}
    for value in values:
        name, _, path = (part.strip() for part in value.partition("="))
        if not (name and path):
            raise ConfigError(
                f"--pipeline {value}: expected NAME=PATH, such as "
                "distilled=training/distilled/best."
            )
        check_pipeline(path)
        groups.setdefault(name, []).append(path)
    return groups


def score(groups: dict[str, list[str]], test: Path, teacher: str | None) -> list[ScoredRow]:
    """Score all seeds.

    teacher: name of the teacher of all others, if there is one.
    """
    if teacher is not None and teacher not in groups:
        raise ConfigError(
            f"--teacher {teacher}: expected one of the pipelines' names, {', '.join(groups)}."
        )
    scored = []
    for name, paths in groups.items():
        scores = []
        for path in paths:
            msg.text(f"Scoring {path}")
            scores.append(score_pipeline(path, test))
        row = ScoredRow(name, name, paths, scores, "" if name == teacher else teacher or "")
        if not has_score(ACCURACY, row):
            raise CorpusError(
                f"{name} has no accuracy on {test}: expected documents with one label each, and a "
                "pipeline with textcat, which gives each document one label."
            )
        scored.append(row)
    return scored


def main(
    test: Test,
    pipeline: Annotated[
        list[str], typer.Option(metavar="NAME=PATH", help="A pipeline; give one or more")
    ],
    output: Output,
    teacher: Annotated[str | None, typer.Option(help="NAME of the others' teacher")] = None,
    stem: Stem = STEM,
) -> None:
    """Score pipelines, print the tables and save them."""
    with friendly_errors():
        date = timestamp()
        check_test_set(test)
        report(score(group(pipeline), test, teacher), test, output, stem, date)


if __name__ == "__main__":
    typer.run(main)
