"""Scores of the trained rows, and what each step gave.

    python -m benchmarks.teaching.table OUT TEST.spacy --teacher PIPELINE --output benchmarks/ewt

OUT is what `benchmarks.teaching.rows` trained; rows that are not finished are left out. What
was scored once is kept in OUT/scores, so that the table can be made again when a row comes in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer
from wasabi import msg

from benchmarks.teaching.comparison import (
    TASKS,
    Difference,
    Line,
    Step,
    Subject,
    compare,
    score_once,
)
from benchmarks.teaching.rows import ROWS, Row
from scripts.train import FINISHED
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.pipelines import check_pipeline
from spacy_distil.report import bootstrap
from spacy_distil.report.layout import MISSING, measured_on
from spacy_distil.report.machine import command_line, describe_machine
from spacy_distil.report.results import MeanScore, Retention
from spacy_distil.report.scores import Column
from spacy_distil.tables import Table
from spacy_distil.text.documents import check_test_set

STEM = "teaching"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Result:
    """All tables, as JSON has them."""

    test: str
    n_docs: int
    n_words: int
    resamples: int
    level: float
    machine: dict[str, Any]
    date: str
    command: str
    lines: list[Line]
    steps: list[Step] = field(default_factory=list)


def finished_seeds(output: Path, row: Row) -> list[Path]:
    """Trained pipelines of a row, by seed."""
    found = {
        int(match[1]): path / "model-best"
        for path in (output / row.name).glob("seed-*")
        if (match := re.fullmatch(r"seed-(\d+)", path.name)) and (path / FINISHED).is_file()
    }
    return [found[seed] for seed in sorted(found)]


def collect(output: Path, test: Path, teachers: dict[str, Path]) -> list[Subject]:
    """The teachers and all finished rows, scored.

    teachers: by the entity recognizer that they have.
    """
    cache = output / "scores"
    subjects = []
    names = {ner: f"teacher{'' if ner == 'distil_ner' else f' ({ner})'}" for ner in teachers}
    for ner, path in teachers.items():
        check_pipeline(str(path))
        scores = score_once(path, test, cache / f"teacher-{ner}.json")
        subjects.append(Subject(names[ner], names[ner], [str(path)], [scores]))
    for row in ROWS.values():
        seeds = finished_seeds(output, row)
        if not seeds:
            continue
        scored = [
            score_once(path, test, cache / f"{row.name}-{path.parent.name}.json") for path in seeds
        ]
        teacher = names.get(row.ner, "")
        if not teacher:
            msg.warn(f"{row.name}: no retention, as no teacher with {row.ner} was named")
        paths = [str(path) for path in seeds]
        subjects.append(Subject(row.name, row.title, paths, scored, teacher, row.before))
    if len(subjects) == len(teachers):
        raise ConfigError(f"{output}: no finished row. Rows: {', '.join(ROWS)}")
    return subjects


def make_result(subjects: Sequence[Subject], test: Path) -> Result:
    lines, steps = compare(subjects)
    return Result(
        test=test.name,
        n_docs=subjects[0].scores[0].n_docs,
        n_words=subjects[0].scores[0].n_words,
        resamples=bootstrap.RESAMPLES,
        level=bootstrap.LEVEL,
        machine=describe_machine(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command_line(),
        lines=lines,
        steps=steps,
    )


def make_tables(result: Result) -> list[Table]:
    columns = [c for c in TASKS if any(c.key in line.scores for line in result.lines)]
    students = [line for line in result.lines if line.teacher]
    headings = [column.title for column in columns]
    tables = [
        Table(
            "Scores",
            ["row", "seeds", "parameters", *headings],
            [
                [
                    line.name if line.name == line.title else f"{line.name}: {line.title}",
                    str(len(line.pipelines)),
                    f"{line.n_parameters / 1e6:,.1f} M",
                    *(_cell(line.scores.get(c.key), c, _figure) for c in columns),
                ]
                for line in result.lines
            ],
        )
    ]
    if students:
        tables += [
            Table(
                "Retention: score / score of the teacher, %",
                ["row", *headings],
                [
                    [line.name, *(_cell(line.retention.get(c.key), c, _kept) for c in columns)]
                    for line in students
                ],
            ),
            Table(
                "Score less that of the teacher, points",
                ["row", *headings],
                [
                    [line.name, *(_cell(line.to_teacher.get(c.key), c, points) for c in columns)]
                    for line in students
                ],
            ),
        ]
    if result.steps:
        tables.append(
            Table(
                "What a step gave: score less that of the row before, points",
                ["rows", *headings],
                [
                    [
                        f"{step.row} {MINUS} {step.before}",
                        *(_cell(step.differences.get(c.key), c, points) for c in columns),
                    ]
                    for step in result.steps
                ],
            )
        )
    return tables


def _cell(value: Any, column: Column, form: Callable[[Any, int], str]) -> str:
    return MISSING if value is None else form(value, column.decimals)


def _figure(figure: MeanScore, decimals: int) -> str:
    std = "" if figure.std is None else f" ± {figure.std * 100:.{decimals}f}"
    return f"{figure.mean * 100:.{decimals}f}{std}"


def _kept(retention: Retention, decimals: int) -> str:
    text = f"{retention.value * 100:.{decimals}f}"
    if retention.interval is None:
        return text
    low, high = (f"{bound * 100:.{decimals}f}" for bound in retention.interval)
    return f"{text} [{low}, {high}]"


def points(difference: Difference, decimals: int) -> str:
    """With a sign, and the interval."""
    value, low, high = (
        # 0 has no sign, of whichever side it was rounded from.
        f"{round(number * 100, decimals) + 0.0:+.{decimals}f}".replace("-", MINUS)
        for number in (difference.value, *difference.interval)
    )
    return f"{value} [{low}, {high}]"


def to_markdown(result: Result) -> str:
    spread = any(len(line.pipelines) > 1 for line in result.lines)
    note = (
        f"Test set: {result.n_docs:,} documents, {result.n_words:,} spaCy tokens. Scores in %, "
        f"from spaCy's scorer, means over seeds{'; ± is their standard deviation' * spread}. "
        f"Brackets hold the {result.level:.0%} interval of a paired bootstrap over the test "
        f"documents ({result.resamples:,} resamples): it says how far the test set's size makes a "
        "number move, not how far another seed would.\n\n"
        f"{measured_on(result.machine, result.date)}"
    )
    parts = [*(table.to_markdown() for table in make_tables(result)), note]
    return "\n\n".join(parts) + "\n"


def save(result: Result, output: Path, stem: str) -> None:
    """Print the tables, and write them to `output` as STEM.md and STEM.json."""
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(result), indent=2)
    (output / f"{stem}.json").write_text(text + "\n", encoding="utf8")
    (output / f"{stem}.md").write_text(to_markdown(result), encoding="utf8")
    for table in make_tables(result):
        print(table.to_text())
    msg.good(f"Saved {stem}.json and {stem}.md to {output}")


def main(
    rows: Annotated[Path, typer.Argument(metavar="OUT", help="Directory of all rows")],
    test: Annotated[Path, typer.Argument(metavar="TEST.spacy", help="Test documents")],
    output: Annotated[Path, typer.Option(help="Directory for the tables")],
    teacher: Annotated[Path | None, typer.Option(help="Pipeline with distil_ner")] = None,
    teacher_ner: Annotated[Path | None, typer.Option(help="Pipeline with spaCy's ner")] = None,
    stem: Annotated[str, typer.Option(help="Name of the .md and the .json file")] = STEM,
) -> None:
    """Score all finished rows, print the tables and save them."""
    with friendly_errors():
        check_test_set(test)
        named = {"distil_ner": teacher, "ner": teacher_ner}
        teachers = {ner: path for ner, path in named.items() if path is not None}
        save(make_result(collect(rows, test, teachers), test), output, stem)


if __name__ == "__main__":
    typer.run(main)
