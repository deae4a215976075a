"""Compare speed, latency, cold start and memory on the CPU, ours against rivals.

    python -m benchmarks.run_anywhere DOCS.spacy WORK --teacher PIPELINE --student PIPELINE \\
        --cnn PIPELINE --output benchmarks/run_anywhere/results

The benchmark makes its pipelines from trained ones (`common/pipelines.py`): int8 with
`spacy distil quantize`, and a twin on spacy-transformers with the same weights and stock settings.
`rows.py` lists the rows and the ratio that each must reach. The two sides of a row take turns, each
in a process of its own. The table shows the median and the range of the ratio over the rounds.

The encoder alone does different work on the two sides: ours pools pieces to tokens and fills
`doc.tensor`, spacy-transformers leaves the pooling to the listeners.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import spacy
import typer
from spacy.tokens import Doc
from wasabi import msg

from benchmarks.common.options import (
    BatchSize,
    Docs,
    Keys,
    Limit,
    Output,
    Quantize,
    Repeats,
    choose_rows,
)
from benchmarks.common.pipelines import Pipelines, Sources
from benchmarks.common.project import REPO
from benchmarks.common.results import report_results, timestamp
from benchmarks.run_anywhere.rows import (
    ROWS,
    Condition,
    Kind,
    RivalRow,
    RowResult,
    judge,
    make_table,
)
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.report.machine import PACKAGES
from spacy_distil.report.process import PipelineSource, Worker
from spacy_distil.report.speed import measure, texts_file
from spacy_distil.text.documents import read_examples

STEM = "run_anywhere"
SENTENCE_WORDS = 20
MAX_SENTENCES = 40


def main(
    docs: Docs,
    work: Annotated[Path, typer.Argument(help="Directory for the pipelines to make")],
    output: Output,
    teacher: Annotated[Path | None, typer.Option(help="Pipeline of 6 layers, with ner")] = None,
    student: Annotated[
        Path | None, typer.Option(help="Pipeline of 3 layers, with distil_ner")
    ] = None,
    cnn: Annotated[Path | None, typer.Option(help="spaCy's CNN pipeline")] = None,
    teacher_distil_ner: Annotated[
        Path | None,
        typer.Option(help="The teacher with distil_ner; left out: one is trained briefly"),
    ] = None,
    light_python: Annotated[
        Path | None,
        typer.Option(help="Python with only the base install; left out: one is made in WORK"),
    ] = None,
    rows: Keys = "",
    repeats: Repeats = 5,
    starts: Annotated[int, typer.Option(help="Number of cold starts")] = 5,
    batch_size: BatchSize = 256,
    limit: Limit = 0,
    bert_base_limit: Annotated[int, typer.Option(help="Number of documents for BERT-base")] = 60,
    quantize: Quantize = "",
    reuse: Annotated[bool, typer.Option(help="Use the pipelines that are in WORK")] = False,
) -> None:
    """Measure all rows under all their conditions, print the table and save it."""
    with friendly_errors():
        chosen = choose_rows(rows, ROWS)
        sources = Sources(
            docs=docs.resolve(),
            teacher=_absolute(teacher),
            student=_absolute(student),
            cnn=_absolute(cnn),
            teacher_distil_ner=_absolute(teacher_distil_ner),
            quantize=quantize.split(),
        )
        work, output = work.resolve(), output.resolve()
        light = None if light_python is None else str(light_python.absolute())
        if light is None and any(row.kind in ("cold start", "memory") for row in chosen):
            light = make_light_environment(work / "light")
        pipelines = Pipelines(sources, work, reuse=reuse)
        for row in chosen:
            for name in (row.ours, row.theirs):
                pipelines.path(name)
        # A process that starts in the repository would import its modules.
        os.chdir(work)
        date = timestamp()
        texts = [
            example.reference.text
            for example in read_examples(spacy.blank("xx"), sources.docs, limit=limit)
        ]
        sentences = find_sentences(sources.docs)
        results: list[RowResult] = []
        for condition, group in _groups(chosen, "speed"):
            results += measure_speed(
                group,
                condition,
                pipelines,
                texts[:bert_base_limit] if group[0].group == "BERT-base" else texts,
                repeats=repeats,
                batch_size=batch_size,
            )
        for condition, group in _groups(chosen, "latency"):
            results += measure_latency(group, condition, pipelines, sentences, repeats=repeats)
        starting = [row for row in chosen if row.kind in ("cold start", "memory")]
        environment = None
        if starting and light is not None:
            of_starts, environment = measure_starts(starting, pipelines, light, starts=starts)
            results += of_starts
        order = {row.key: i for i, row in enumerate(ROWS)}
        results.sort(key=lambda result: order[result.row.key])
    settings = {
        "docs": docs.name,
        "n_docs": len(texts),
        "n_docs_bert_base": min(bert_base_limit, len(texts)),
        "n_sentences": len(sentences),
        "repeats": repeats,
        "starts": starts,
        "batch_size": batch_size,
    }
    data = {
        "settings": settings,
        "light_environment": environment,
        "results": [{**asdict(result), "met": result.met} for result in results],
    }
    about = (
        f"{settings['n_docs']} documents of {docs.name} (BERT-base: "
        f"{settings['n_docs_bert_base']}), in batches of {batch_size}; {len(sentences)} sentences "
        f"of {SENTENCE_WORDS} words, one at a time. Both sides take turns, each in a process of "
        f"its own: medians (range) of {repeats} rounds and {starts} starts; the ratio is the "
        "median (range) over the rounds."
    )
    report_results([make_table(results), about], data, output=output, stem=STEM, date=date)


# Measuring


def measure_speed(
    rows: Sequence[RivalRow],
    condition: Condition,
    pipelines: Pipelines,
    texts: Sequence[str],
    *,
    repeats: int,
    batch_size: int,
) -> list[RowResult]:
    """Measure words/s of whole documents."""
    speeds = measure(
        _sources(rows, pipelines),
        texts,
        repeats=repeats,
        load_repeats=1,
        threads=condition.threads,
        pin_cores=condition.pin_cores,
        batch_sizes=[batch_size],
        log=_log(condition, rows[0].group),
    )
    rates = {name: [one.words_per_second for one in s.passes] for name, s in speeds.items()}
    return [judge(row, condition, rates[row.ours], rates[row.theirs]) for row in rows]


def measure_latency(
    rows: Sequence[RivalRow],
    condition: Condition,
    pipelines: Pipelines,
    sentences: Sequence[str],
    *,
    repeats: int,
) -> list[RowResult]:
    """Measure the median time of `nlp(sentence)`."""
    speeds = measure(
        _sources(rows, pipelines),
        sentences,
        repeats=repeats,
        load_repeats=1,
        threads=condition.threads,
        pin_cores=condition.pin_cores,
        batch_sizes=[1],
        latency_texts=len(sentences),
        log=_log(condition, "single sentences"),
    )
    p50 = {name: speed.percentiles(50) for name, speed in speeds.items()}
    return [judge(row, condition, p50[row.ours], p50[row.theirs]) for row in rows]


def measure_starts(
    rows: Sequence[RivalRow], pipelines: Pipelines, light: str, *, starts: int
) -> tuple[list[RowResult], dict[str, Any]]:
    """Measure seconds from process start to the first doc, and peak memory by then.

    light: Python with only the base install, which runs ours.
    RETURNS: the results, and a description of the light environment.
    """
    results = []
    environment: dict[str, Any] = {}
    measured: dict[tuple[str, str, Condition], dict[Kind, list[list[float]]]] = {}
    for row in rows:
        for condition in row.conditions:
            key = (row.ours, row.theirs, condition)
            if key not in measured:
                sides = [
                    PipelineSource(str(pipelines.path(row.ours)), light),
                    PipelineSource(str(pipelines.path(row.theirs))),
                ]
                measured[key], environment = start_in_turns(sides, condition, starts)
            ours, theirs = measured[key][row.kind]
            results.append(judge(row, condition, ours, theirs))
    return results, environment


def start_in_turns(
    sides: Sequence[PipelineSource], condition: Condition, starts: int
) -> tuple[dict[Kind, list[list[float]]], dict[str, Any]]:
    """Start the processes of both sides in turns. The first start of each fills the system's file
    cache and does not count.

    RETURNS: seconds and bytes, a list per side, and a description of the first side's environment.
    """
    seconds: list[list[float]] = [[] for _ in sides]
    n_bytes: list[list[float]] = [[] for _ in sides]
    environment: dict[str, Any] = {}
    with texts_file([]) as file:
        for turn in range(starts + 1):
            _log(condition, "cold start")(f"Start {turn} of {starts}")
            for side, subject in enumerate(sides):
                with Worker(
                    subject, file, threads=condition.threads, pin_cores=condition.pin_cores
                ) as worker:
                    if turn:
                        seconds[side].append(worker.load.cold_start_seconds)
                        n_bytes[side].append(worker.peak_rss_bytes())
                    elif side == 0:
                        environment = worker.environment(PACKAGES)
    return {"cold start": seconds, "memory": n_bytes}, environment


def find_sentences(docs: Path) -> list[str]:
    """Read sentences of 20 spaCy tokens. If no sentence is annotated, take the first 20 tokens of
    each document.
    """
    nlp = spacy.blank("en")
    annotated: list[str] = []
    beginnings: list[str] = []
    for example in read_examples(nlp, docs):
        gold = example.reference
        spans = list(gold.sents) if gold.has_annotation("SENT_START") else []
        annotated += [s.text for s in spans if _n_words(nlp, s.text) == SENTENCE_WORDS]
        beginning: Doc = example.predicted
        if len(beginning) >= SENTENCE_WORDS:
            beginnings.append(beginning[:SENTENCE_WORDS].text)
    sentences = (annotated or beginnings)[:MAX_SENTENCES]
    if not sentences:
        raise ConfigError(f"{docs}: no document has {SENTENCE_WORDS} words.")
    return sentences


def _n_words(nlp: spacy.language.Language, text: str) -> int:
    return len(nlp.make_doc(text))


# The light environment


def make_light_environment(path: Path) -> str:
    """Make a virtual environment with only the base install. RETURNS: its Python."""
    python = path / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    msg.info(f"Making {path}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(path)], check=True)
    with TemporaryDirectory() as directory:
        # Build in a copy, because a build leaves files beside the sources.
        for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(REPO / name, directory)
        shutil.copytree(REPO / "spacy_distil", Path(directory) / "spacy_distil")
        install = [str(python), "-m", "pip", "install", "-q", "-c", str(REPO / "constraints.txt")]
        subprocess.run([*install, directory], check=True)
    return str(python)


# Rows


def _groups(rows: Sequence[RivalRow], kind: Kind) -> list[tuple[Condition, list[RivalRow]]]:
    """Group the rows of one kind that are measured in the same rounds."""
    groups: dict[tuple[str, Condition], list[RivalRow]] = {}
    for row in rows:
        if row.kind == kind:
            for condition in row.conditions:
                groups.setdefault((row.group, condition), []).append(row)
    return [(condition, group) for (_, condition), group in groups.items()]


def _sources(rows: Sequence[RivalRow], pipelines: Pipelines) -> dict[str, PipelineSource]:
    names = dict.fromkeys(name for row in rows for name in (row.ours, row.theirs))
    return {name: PipelineSource(str(pipelines.path(name))) for name in names}


def _log(condition: Condition, task: str) -> Callable[[str], None]:
    return lambda message: msg.info(f"{condition.title}, {task}: {message}")


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.resolve()


if __name__ == "__main__":
    typer.run(main)
