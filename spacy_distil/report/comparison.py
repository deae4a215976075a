"""Pipelines side by side on one test set: scores, retention, speed, size."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import spacy

from spacy_distil.errors import ConfigError, require
from spacy_distil.pipelines import check_pipeline
from spacy_distil.report import bootstrap
from spacy_distil.report.machine import describe_machine
from spacy_distil.report.plot import draw
from spacy_distil.report.process import Subject
from spacy_distil.report.results import Figure, Report, Retention, Row, Settings
from spacy_distil.report.scores import (
    COLUMNS,
    Column,
    Scores,
    score_pipeline,
)
from spacy_distil.report.speed import LOAD_REPEATS, measure
from spacy_distil.report.table import check_section, replace_section, to_markdown
from spacy_distil.text.documents import check_test_set, read_examples

STEM = "compare"


def compare(
    test: Path,
    pipelines: Sequence[tuple[str, str]],
    output: Path,
    *,
    teacher: str | None = None,
    repeats: int = 5,
    load_repeats: int = LOAD_REPEATS,
    threads: int = 2,
    batch_size: int = 256,
    limit: int = 0,
    title: str = "",
    readme: Path | None = None,
    section: str = STEM,
    command: str = "",
    log: Callable[[str], None] = lambda message: None,
) -> Report:
    """Measure pipelines, and write compare.json, compare.md and compare.png to `output`.

    test: .spacy file of annotated documents, or a directory of them.
    pipelines: (name, path or package name). Pipelines of one name are seeds of one row: scores are
        means over them, speed and size those of the first.
    output: directory, made where it is missing.
    teacher: name of the row that retention refers to.
    repeats: timed rounds over all texts; the median counts.
    load_repeats: fresh processes in which each pipeline is loaded; the median counts.
    threads: of each pipeline's process while speed is measured, on the CPU. Scores are computed on
        the device that the pipeline picks.
    batch_size: documents at a time.
    limit: the first N documents of the test set; 0 for all.
    title: heading of the tables.
    readme, section: replace what stands between `<!-- SECTION:start -->` and
        `<!-- SECTION:end -->` in this file by the tables.
    command: how this was called, for the record.
    log: told what is being done.
    """
    groups = _group(pipelines)
    for setting, value in (
        ("repeats", repeats),
        ("load_repeats", load_repeats),
        ("threads", threads),
        ("batch_size", batch_size),
    ):
        if value < 1:
            raise ConfigError(f"{setting} = {value}: expected at least 1.")
    if limit < 0:
        raise ConfigError(f"limit = {limit}: expected 0, for all documents, or more.")
    _check(test, groups, output, teacher=teacher)
    if readme is not None:
        check_section(readme, section)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    machine = describe_machine()

    first = {name: Subject(seeds[0]) for name, seeds in groups.items()}
    texts = [
        example.reference.text for example in read_examples(spacy.blank("xx"), test, limit=limit)
    ]
    # Speed first, while this process holds little memory.
    speeds = measure(
        first,
        texts,
        repeats=repeats,
        load_repeats=load_repeats,
        threads=threads,
        batch_sizes=[batch_size],
        log=log,
    )
    scores: dict[str, list[Scores]] = {}
    for name, seeds in groups.items():
        scores[name] = []
        for pipeline in seeds:
            log(f"Scores of {name}: {pipeline}")
            scores[name].append(score_pipeline(pipeline, test, batch_size=batch_size, limit=limit))
    reference = scores[teacher] if teacher is not None else None
    report = Report(
        title=title,
        test=str(test),
        n_docs=len(texts),
        n_words=next(iter(scores.values()))[0].n_words,
        teacher=teacher,
        settings=Settings(
            repeats=repeats,
            load_repeats=load_repeats,
            threads=threads,
            batch_size=batch_size,
            limit=limit,
            resamples=bootstrap.RESAMPLES,
            seed=bootstrap.SEED,
            level=bootstrap.LEVEL,
        ),
        machine=machine,
        date=date,
        command=command,
        rows=[
            Row(
                name=name,
                pipelines=seeds,
                scores=aggregate(scores[name]),
                retention=retain(scores[name], reference) if reference is not None else {},
                n_parameters=scores[name][0].n_parameters,
                n_bytes=scores[name][0].n_bytes,
                speed=speeds[name],
                full_scores=[one.full for one in scores[name]],
            )
            for name, seeds in groups.items()
        ],
    )
    write(report, output, readme=readme, section=section)
    return report


def write(report: Report, output: Path, *, readme: Path | None, section: str) -> None:
    """compare.json, compare.md and compare.png in `output`, and the section of `readme`."""
    output.mkdir(parents=True, exist_ok=True)
    plot = output / f"{STEM}.png"
    draw(report, plot)
    (output / f"{STEM}.json").write_text(
        json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8"
    )
    (output / f"{STEM}.md").write_text(to_markdown(report, plot=plot.name), encoding="utf-8")
    if readme is not None:
        link = Path(os.path.relpath(plot, readme.parent)).as_posix()
        replace_section(readme, section, to_markdown(report, plot=link))


def aggregate(seeds: Sequence[Scores]) -> dict[str, Figure]:
    """Mean, standard deviation and interval of each score that all seeds have."""
    figures = {}
    for column in COLUMNS:
        if not _all_have(column, seeds):
            continue
        values = [one.values[column.key] for one in seeds]
        samples = _samples(column, seeds)
        figures[column.key] = Figure(
            mean=mean(values),
            std=stdev(values) if len(values) > 1 else None,
            seeds=values,
            interval=None if samples is None else bootstrap.percentiles(samples),
        )
    return figures


def retain(seeds: Sequence[Scores], teacher: Sequence[Scores]) -> dict[str, Retention]:
    """Score divided by the teacher's score, of each task that both have."""
    kept = {}
    for column in COLUMNS:
        if not (column.is_task and _all_have(column, seeds) and _all_have(column, teacher)):
            continue
        reference = mean(one.values[column.key] for one in teacher)
        if reference == 0:
            continue
        mine, theirs = _samples(column, seeds), _samples(column, teacher)
        kept[column.key] = Retention(
            value=mean(one.values[column.key] for one in seeds) / reference,
            interval=None
            if mine is None or theirs is None or not theirs.all()
            else bootstrap.percentiles(mine / theirs),
        )
    return kept


def _all_have(column: Column, seeds: Sequence[Scores]) -> bool:
    return all(column.key in one.values for one in seeds)


def _samples(column: Column, seeds: Sequence[Scores]) -> bootstrap.Floats | None:
    """Bootstrap samples of the seeds' mean: the same documents are drawn for each."""
    if not all(column.counts in one.counts for one in seeds):
        return None
    samples: bootstrap.Floats = np.mean(
        [bootstrap.resample(column.metric, one.counts[column.counts]) for one in seeds], axis=0
    )
    return samples


def _group(pipelines: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, pipeline in pipelines:
        groups.setdefault(name, []).append(pipeline)
    return groups


def _check(test: Path, groups: dict[str, list[str]], output: Path, *, teacher: str | None) -> None:
    """Everything that can be known to be wrong before minutes are spent on measuring."""
    require("matplotlib", extra="report", purpose="The plot of `distil compare`")
    if not groups:
        raise ConfigError("No pipelines to compare: expected one NAME=PATH or more.")
    if teacher is not None and teacher not in groups:
        raise ConfigError(
            f"teacher = {teacher!r}: expected one of the pipelines' names, {', '.join(groups)}."
        )
    check_test_set(test)
    for seeds in groups.values():
        for pipeline in seeds:
            check_pipeline(pipeline)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file: expected a directory to write the results to.")
