"""Scores of the trained rows, and what each step gave.

    python -m benchmarks.teaching.table OUT TEST.spacy --teacher PIPELINE --output benchmarks/ewt

OUT is what `benchmarks.teaching.rows` trained; rows that are not finished are left out. A
difference is that of two means over seeds on the same test documents, and its interval a paired
bootstrap over these documents. What was scored once is kept in OUT/scores, so that the table can be
made again when a row comes in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import numpy as np
import typer
from wasabi import msg
from weasel.util import get_checksum

from benchmarks.teaching.rows import ROWS, Row
from scripts.train import FINISHED
from spacy_distil.documents import check_test_set
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.pipelines import check_pipeline
from spacy_distil.report import bootstrap
from spacy_distil.report.bootstrap import Counts, Floats, Interval
from spacy_distil.report.layout import MISSING, measured_on
from spacy_distil.report.machine import command_line, describe_machine
from spacy_distil.report.results import Figure, Retention
from spacy_distil.report.scores import COLUMNS, Column, Scores, score_pipeline
from spacy_distil.tables import Table

STEM = "teaching"
MINUS = "\N{MINUS SIGN}"


def accuracy(totals: Floats) -> Floats:
    """Of labels that exclude each other. totals: shape (..., n_labels, 3). To (...)."""
    hits, gold = totals[..., 0].sum(-1), (totals[..., 0] + totals[..., 2]).sum(-1)
    return np.divide(hits, gold, out=np.zeros(gold.shape), where=gold > 0)


# Where each document has one label and is given one, micro-averaged recall is accuracy.
ACCURACY = Column("cats_micro_r", "textcat acc", "cats", accuracy, decimals=2)
TASKS = (*(column for column in COLUMNS if column.is_task), ACCURACY)


@dataclass(frozen=True)
class Subject:
    """A row of the table: the teacher, or a recipe.

    pipelines: paths of the seeds, and scores of each.
    teacher: name of the subject that it is a student of; empty for a teacher.
    before: names of those that it is compared with.
    """

    name: str
    title: str
    pipelines: list[str]
    scores: list[Scores]
    teacher: str = ""
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """Mean score of one subject less that of another (points as shares, 0.01 is one point)."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Step:
    """What a row has that another has not gave so much, by `Column.key`."""

    row: str
    before: str
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Line:
    """A subject with all that is said about it, each by `Column.key`."""

    name: str
    title: str
    teacher: str
    pipelines: list[str]
    scores: dict[str, Figure]
    retention: dict[str, Retention]
    to_teacher: dict[str, Difference]
    n_parameters: int


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


# Scoring


def score_once(pipeline: Path, test: Path, cache: Path) -> Scores:
    """The scores of a pipeline, from `cache` where they are those of these very files."""
    source = {"pipeline": get_checksum(pipeline), "test": get_checksum(test)}
    if cache.is_file():
        kept = json.loads(cache.read_text(encoding="utf8"))
        if kept["source"] == source:
            values = kept["scores"]
            values["counts"] = {k: np.array(v, np.int64) for k, v in values["counts"].items()}
            return Scores(**values)
    msg.text(f"Scoring {pipeline}")
    scores = score_pipeline(str(pipeline), test)
    counts = {name: array.tolist() for name, array in scores.counts.items()}
    cache.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"source": source, "scores": {**vars(scores), "counts": counts}})
    cache.write_text(text + "\n", encoding="utf8")
    return scores


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


# Comparing


def has(column: Column, subject: Subject) -> bool:
    """Whether all seeds have a score that can be resampled."""
    return all(
        column.counts in one.counts
        and (is_exclusive(one.counts["cats"]) if column is ACCURACY else column.key in one.values)
        for one in subject.scores
    )


def is_exclusive(counts: Counts) -> bool:
    """Whether each document has one label at most and was given as many.

    counts: shape (n_docs, n_labels, 3).
    """
    hits, alarms, misses = np.moveaxis(counts.sum(axis=1), -1, 0)
    return bool(np.all(hits + misses <= 1) and np.array_equal(alarms, misses))


def values(column: Column, subject: Subject) -> list[float]:
    """The score of each seed, by spaCy's scorer."""
    return [one.full[column.key] for one in subject.scores]


def samples(column: Column, subject: Subject) -> Floats:
    """Bootstrap samples of the mean over seeds: the same documents are drawn for each, and for
    every subject with the same test set. Shape (resamples,)."""
    drawn = [bootstrap.resample(column.metric, s.counts[column.counts]) for s in subject.scores]
    averaged: Floats = np.mean(drawn, axis=0)
    return averaged


def compare(subjects: Sequence[Subject]) -> tuple[list[Line], list[Step]]:
    """Every subject against its teacher, and against those before it."""
    by_name = {subject.name: subject for subject in subjects}
    drawn = {
        (subject.name, column.key): samples(column, subject)
        for subject in subjects
        for column in TASKS
        if has(column, subject)
    }

    def differ(one: Subject, other: Subject) -> dict[str, Difference]:
        found = {}
        for column in TASKS:
            mine, theirs = (drawn.get((s.name, column.key)) for s in (one, other))
            if mine is not None and theirs is not None:
                value = mean(values(column, one)) - mean(values(column, other))
                found[column.key] = Difference(value, bootstrap.percentiles(mine - theirs))
        return found

    def retain(student: Subject, teacher: Subject) -> dict[str, Retention]:
        found = {}
        for column in TASKS:
            mine, theirs = (drawn.get((s.name, column.key)) for s in (student, teacher))
            if mine is not None and theirs is not None and theirs.all():
                value = mean(values(column, student)) / mean(values(column, teacher))
                found[column.key] = Retention(value, bootstrap.percentiles(mine / theirs))
        return found

    lines, steps = [], []
    for subject in subjects:
        teacher = by_name.get(subject.teacher)
        figures = {}
        for column in TASKS:
            if (subject.name, column.key) in drawn:
                seeds = values(column, subject)
                figures[column.key] = Figure(
                    mean=mean(seeds),
                    std=stdev(seeds) if len(seeds) > 1 else None,
                    seeds=seeds,
                    interval=bootstrap.percentiles(drawn[subject.name, column.key]),
                )
        lines.append(
            Line(
                name=subject.name,
                title=subject.title,
                teacher=subject.teacher,
                pipelines=subject.pipelines,
                scores=figures,
                retention={} if teacher is None else retain(subject, teacher),
                to_teacher={} if teacher is None else differ(subject, teacher),
                n_parameters=subject.scores[0].n_parameters,
            )
        )
        steps += [
            Step(subject.name, name, differ(subject, by_name[name]))
            for name in subject.before
            if name in by_name
        ]
    return lines, steps


# Tables


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


def _figure(figure: Figure, decimals: int) -> str:
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
        result = make_result(collect(rows, test, teachers), test)
        output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(result), indent=2)
        (output / f"{stem}.json").write_text(text + "\n", encoding="utf8")
        (output / f"{stem}.md").write_text(to_markdown(result), encoding="utf8")
        for table in make_tables(result):
            print(table.to_text())
    msg.good(f"Saved {stem}.json and {stem}.md to {output}")


if __name__ == "__main__":
    typer.run(main)
