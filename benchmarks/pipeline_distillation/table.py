"""Make the table of the rows' scores and gains.

    python -m benchmarks.pipeline_distillation.table OUT TEST.spacy --teacher PIPELINE \\
        --output benchmarks/pipeline_distillation/results

OUT is the directory of `benchmarks.pipeline_distillation.rows`. Unfinished rows are left out.
Scores are kept in OUT/scores, so that the table can be made again when another row is finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from benchmarks.common.commands import finished_seeds
from benchmarks.common.comparison import (
    TASKS,
    ComparedRow,
    RowGain,
    ScoredRow,
    compare,
    score_once,
)
from benchmarks.common.options import Output, RowsDirectory, Stem, Test
from benchmarks.common.results import report_results, timestamp
from benchmarks.common.score_tables import cell, first_cells, make_gain_table, percent, points
from benchmarks.pipeline_distillation.rows import ROWS
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.pipelines import check_pipeline
from spacy_distil.report import bootstrap
from spacy_distil.report.means import MeanScore
from spacy_distil.report.results import Retention
from spacy_distil.tables import Table
from spacy_distil.text.documents import check_test_set

STEM = "pipeline_distillation"


def collect(output: Path, test: Path, teachers: dict[str, Path]) -> list[ScoredRow]:
    """Score the teachers and all finished rows.

    teachers: by the factory of their entity recognizer.
    """
    cache = output / "scores"
    scored = []
    names = {ner: f"teacher{'' if ner == 'distil_ner' else f' ({ner})'}" for ner in teachers}
    for ner, path in teachers.items():
        check_pipeline(str(path))
        scores = score_once(path, test, cache / f"teacher-{ner}.json")
        scored.append(ScoredRow(names[ner], names[ner], [str(path)], [scores]))
    for row in ROWS.values():
        pipelines = finished_seeds(output / row.name)
        if not pipelines:
            continue
        scores_of_seeds = [
            score_once(path, test, cache / f"{row.name}-seed-{seed}.json")
            for seed, path in pipelines.items()
        ]
        teacher = names.get(row.ner, "")
        if not teacher:
            msg.warn(f"{row.name}: no retention, because no teacher with {row.ner} was given")
        paths = [str(path) for path in pipelines.values()]
        scored.append(ScoredRow(row.name, row.title, paths, scores_of_seeds, teacher, row.before))
    if len(scored) == len(teachers):
        raise ConfigError(f"{output}: no finished row. Rows: {', '.join(ROWS)}")
    return scored


def report(scored: Sequence[ScoredRow], test: Path, output: Path, stem: str, date: str) -> None:
    """Compare rows, print the tables and save them."""
    rows, gains = compare(scored)
    n_docs, n_words = scored[0].scores[0].n_docs, scored[0].scores[0].n_words
    spread = "; ± is their standard deviation" * any(len(row.pipelines) > 1 for row in rows)
    about = (
        f"Test set: {n_docs:,} documents, {n_words:,} spaCy tokens. Scores in %, from spaCy's "
        f"scorer, means over seeds{spread}. Brackets hold the {bootstrap.LEVEL:.0%} interval of a "
        f"paired bootstrap over the test documents ({bootstrap.RESAMPLES:,} resamples): it says "
        "how far the test set's size makes a number move, not how far another seed would."
    )
    data = {
        "test": test.name,
        "n_docs": n_docs,
        "n_words": n_words,
        "resamples": bootstrap.RESAMPLES,
        "level": bootstrap.LEVEL,
        "lines": [asdict(row) for row in rows],
        "steps": [asdict(gain) for gain in gains],
    }
    report_results([*make_tables(rows, gains), about], data, output=output, stem=stem, date=date)


def make_tables(rows: Sequence[ComparedRow], gains: Sequence[RowGain]) -> list[Table]:
    columns = [c for c in TASKS if any(c.key in row.scores for row in rows)]
    students = [row for row in rows if row.teacher]
    headings = [column.title for column in columns]
    tables = [
        Table(
            "Scores",
            ["row", "seeds", "parameters", *headings],
            [
                [*first_cells(row), *(cell(row.scores.get(c.key), c, _figure) for c in columns)]
                for row in rows
            ],
        )
    ]
    if students:
        tables += [
            Table(
                "Retention: score / score of the teacher, %",
                ["row", *headings],
                [
                    [row.name, *(cell(row.retention.get(c.key), c, _retention) for c in columns)]
                    for row in students
                ],
            ),
            Table(
                "Score minus the score of the teacher, in points",
                ["row", *headings],
                [
                    [row.name, *(cell(row.to_teacher.get(c.key), c, points) for c in columns)]
                    for row in students
                ],
            ),
        ]
    return [*tables, make_gain_table(gains, columns)] if gains else tables


def _figure(figure: MeanScore, decimals: int) -> str:
    return percent(figure.mean, figure.std, decimals)


def _retention(retention: Retention, decimals: int) -> str:
    text = f"{retention.value * 100:.{decimals}f}"
    if retention.interval is None:
        return text
    low, high = (f"{bound * 100:.{decimals}f}" for bound in retention.interval)
    return f"{text} [{low}, {high}]"


def main(
    rows: RowsDirectory,
    test: Test,
    output: Output,
    teacher: Annotated[Path | None, typer.Option(help="Pipeline with distil_ner")] = None,
    teacher_ner: Annotated[Path | None, typer.Option(help="Pipeline with spaCy's ner")] = None,
    stem: Stem = STEM,
) -> None:
    """Score all finished rows, print the tables and save them."""
    with friendly_errors():
        date = timestamp()
        check_test_set(test)
        by_ner = {"distil_ner": teacher, "ner": teacher_ner}
        teachers = {ner: path for ner, path in by_ner.items() if path is not None}
        report(collect(rows, test, teachers), test, output, stem, date)


if __name__ == "__main__":
    typer.run(main)
