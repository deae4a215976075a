"""Pipelines side by side on one test set: scores, retention, speed, size."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from spacy_distil.errors import ConfigError
from spacy_distil.pipelines import check_pipeline, import_code, load_pipeline
from spacy_distil.report import bootstrap
from spacy_distil.report.aggregation import aggregate, compute_retention
from spacy_distil.report.comparison_table import to_markdown
from spacy_distil.report.machine import describe_machine
from spacy_distil.report.page import write_page
from spacy_distil.report.plot import comparison_panels, save_plot
from spacy_distil.report.predictions import Predictions, read_references
from spacy_distil.report.process import PipelineSource
from spacy_distil.report.readme import check_section, replace_section
from spacy_distil.report.reliability.collecting import judge
from spacy_distil.report.reliability.judged import Judged
from spacy_distil.report.reliability.measures import measure_pipes
from spacy_distil.report.results import (
    ComparedPipeline,
    Comparison,
    ComparisonSettings,
    check_results_directory,
    write_results,
)
from spacy_distil.report.results_page import comparison_page
from spacy_distil.report.scores import Scores, score_and_predict
from spacy_distil.report.speed import LOAD_REPEATS, measure
from spacy_distil.report.verdicts import find_verdicts
from spacy_distil.text.documents import check_test_set, read_examples

STEM = "compare"


def compare(
    pipelines: Mapping[str, str | Path | Sequence[str | Path]],
    gold: str | Path,
    output: str | Path,
    *,
    teacher: str | None = None,
    limit: int = 0,
    threads: int = 2,
    batch_size: int = 256,
    repeats: int = 5,
    load_repeats: int = LOAD_REPEATS,
    code: str | Path | None = None,
    title: str = "",
    readme: str | Path | None = None,
    section: str = STEM,
    command: str = "",
    log: Callable[[str], Any] = lambda message: None,
) -> Comparison:
    """Measure pipelines on a test set and write compare.json, .md, .html and .png.

        result = compare({"trf": "training/trf", "ours": "training/int8"}, "test.spacy", "metrics")
        score = result.rows[0].scores["ents_f"].mean

    pipelines: path or package of each pipeline by its name in the tables. Several for one name are
        seeds: their scores are averaged, speed and size come from the first.
    gold: .spacy file of annotated documents, or a directory of them.
    output: directory for the results, created if it is missing.
    teacher: name of the pipeline that retention refers to, and whose documents the HTML page shows
        beside those of the others.
    limit: only the first N documents; 0 for all.
    threads: number of CPU threads while speed is measured. Scores are computed on the device that
        the pipeline picks.
    batch_size: documents per batch.
    repeats: timed rounds over all texts. The median counts.
    load_repeats: fresh processes in which each pipeline is loaded. The median counts.
    code: Python file with components and functions that pipelines need. This process and those that
        measure import it.
    title: heading of the tables and the plot.
    readme, section: Markdown file that gets the tables too, between `<!-- SECTION:start -->` and
        `<!-- SECTION:end -->`.
    command: command line, for the record.
    log: callback that receives a line for each step.
    RETURNS: all results, raw timings included.

    Raises ConfigError or CorpusError before any measurement if a setting or path cannot work.
    """
    gold, output = Path(gold), Path(output)
    readme = None if readme is None else Path(readme)
    seeds_of = {
        name: [str(each)] if isinstance(each, str | Path) else [str(seed) for seed in each]
        for name, each in pipelines.items()
    }
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
    _check(seeds_of, gold, output, teacher=teacher)
    if readme is not None:
        check_section(readme, section)
    import_code(code)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    machine = describe_machine()

    texts = [doc.text for doc in read_references(gold, limit=limit)]
    # Speed first, while this process holds little memory.
    speeds = measure(
        {
            name: PipelineSource(seeds[0], code=None if code is None else str(code))
            for name, seeds in seeds_of.items()
        },
        texts,
        repeats=repeats,
        load_repeats=load_repeats,
        threads=threads,
        batch_sizes=[batch_size],
        log=log,
    )
    scores: dict[str, list[Scores]] = {}
    predictions: dict[str, Predictions] = {}
    judged: dict[str, list[dict[str, Judged]]] = {}
    for name, seeds in seeds_of.items():
        scores[name], judged[name] = [], []
        for pipeline in seeds:
            log(f"Scores of {name}: {pipeline}")
            nlp = load_pipeline(pipeline)
            scored, predicted = score_and_predict(nlp, gold, batch_size=batch_size, limit=limit)
            scores[name].append(scored)
            predictions.setdefault(name, predicted)  # of the first seed
            judged[name].append(judge(nlp, read_examples(nlp, gold, limit=limit), batch_size))
    teacher_scores = scores[teacher] if teacher is not None else None
    comparison = Comparison(
        title=title,
        test=str(gold),
        n_docs=len(texts),
        n_words=next(iter(scores.values()))[0].n_words,
        teacher=teacher,
        settings=ComparisonSettings(
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
        verdicts=find_verdicts(
            scores,
            {name: speed.words_per_second(batch_size) for name, speed in speeds.items()},
            n_docs=len(texts),
        ),
        rows=[
            ComparedPipeline(
                name=name,
                pipelines=seeds,
                scores=aggregate(scores[name]),
                reliability=measure_pipes(judged[name], len(texts)),
                retention=(
                    {}
                    if teacher_scores is None
                    else compute_retention(scores[name], teacher_scores)
                ),
                n_parameters=scores[name][0].n_parameters,
                n_bytes=scores[name][0].n_bytes,
                speed=speeds[name],
                full_scores=[seed.full for seed in scores[name]],
            )
            for name, seeds in seeds_of.items()
        ],
    )
    plot = output / f"{STEM}.png"
    write_results(comparison, to_markdown(comparison, plot=plot.name), output, stem=STEM)
    save_plot(comparison_panels(comparison).draw(title=comparison.title), plot)
    if readme is not None:
        link = Path(os.path.relpath(plot, readme.parent)).as_posix()
        replace_section(readme, section, to_markdown(comparison, plot=link))
    references = read_references(gold, limit=limit)
    write_page(comparison_page(comparison, predictions, references), output / f"{STEM}.html")
    return comparison


def _check(
    seeds_of: Mapping[str, Sequence[str]], gold: Path, output: Path, *, teacher: str | None
) -> None:
    """Find every mistake that shows before minutes are spent on measuring."""
    if not seeds_of or not all(seeds_of.values()):
        raise ConfigError("No pipelines to compare: expected one NAME=PATH or more.")
    if teacher is not None and teacher not in seeds_of:
        raise ConfigError(
            f"teacher = {teacher!r}: expected one of the pipelines' names, {', '.join(seeds_of)}."
        )
    check_test_set(gold)
    for seeds in seeds_of.values():
        for pipeline in seeds:
            check_pipeline(pipeline)
    check_results_directory(output, command="compare")
