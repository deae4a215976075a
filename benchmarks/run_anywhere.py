"""Ours and theirs side by side on CPU: speed, latency, cold start and memory, in one run.

    python -m benchmarks.run_anywhere DOCS.spacy WORK --teacher PIPELINE --student PIPELINE \\
        --cnn PIPELINE --output benchmarks/ewt

Makes what it compares out of trained pipelines (`anywhere_pipelines`): int8 with
`spacy distil quantize`, and for spacy-transformers a twin with the same encoder and heads in its
stock settings. `anywhere_rows` lists the rows and what each has to reach. A row's two sides take
turns, each in a process of its own; the ratio is that of each round, its median and its range.

An encoder alone does all of its work: ours pools pieces to tokens and fills `doc.tensor`,
spacy-transformers leaves that to the listeners.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import spacy
import typer
from spacy.tokens import Doc
from wasabi import msg

from benchmarks.anywhere_pipelines import Pipelines, Sources
from benchmarks.anywhere_rows import ROWS, Condition, Kind, Result, Row, judge, make_table
from benchmarks.results import save_results
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.report.machine import PACKAGES
from spacy_distil.report.process import PipelineSource, Worker
from spacy_distil.report.speed import measure, texts_file
from spacy_distil.text.documents import read_examples

STEM = "run_anywhere"
REPO = Path(__file__).resolve().parents[1]
SENTENCE_WORDS = 20
MAX_SENTENCES = 40


def main(
    docs: Annotated[Path, typer.Argument(metavar="DOCS.spacy", help="Annotated documents")],
    work: Annotated[Path, typer.Argument(help="Directory for the pipelines that are made")],
    output: Annotated[Path, typer.Option(help=f"Directory for {STEM}.json and {STEM}.md")],
    teacher: Annotated[Path | None, typer.Option(help="Pipeline of 6 layers, with ner")] = None,
    student: Annotated[
        Path | None, typer.Option(help="Pipeline of 3 layers, with distil_ner")
    ] = None,
    cnn: Annotated[Path | None, typer.Option(help="spaCy's CNN pipeline")] = None,
    teacher_distil_ner: Annotated[
        Path | None, typer.Option(help="The teacher with distil_ner; else one is trained briefly")
    ] = None,
    light_python: Annotated[
        Path | None,
        typer.Option(help="Interpreter with the base install alone; else one is made in WORK"),
    ] = None,
    rows: Annotated[str, typer.Option(help="Keys between commas; empty for all")] = "",
    repeats: Annotated[int, typer.Option(help="Rounds")] = 5,
    starts: Annotated[int, typer.Option(help="Cold starts")] = 5,
    batch_size: Annotated[int, typer.Option(help="Documents at a time")] = 256,
    limit: Annotated[int, typer.Option(help="Documents; 0 for all")] = 0,
    bert_base_limit: Annotated[int, typer.Option(help="Documents for BERT-base")] = 60,
    quantize: Annotated[str, typer.Option(help="More arguments of `distil quantize`")] = "",
    reuse: Annotated[bool, typer.Option(help="Take the pipelines that are in WORK")] = False,
) -> None:
    """Measure all rows under all their conditions, print the table and save it."""
    with friendly_errors():
        chosen = _choose(rows)
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
        # So that no process finds modules of this repository by being started in it.
        os.chdir(work)
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        texts = [
            example.reference.text
            for example in read_examples(spacy.blank("xx"), sources.docs, limit=limit)
        ]
        sentences = find_sentences(sources.docs)
        results: list[Result] = []
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
            found, environment = measure_starts(starting, pipelines, light, starts=starts)
            results += found
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
        _write(results, settings, environment, date, output)
    print(make_table(results).to_text())


# Measuring


def measure_speed(
    rows: Sequence[Row],
    condition: Condition,
    pipelines: Pipelines,
    texts: Sequence[str],
    *,
    repeats: int,
    batch_size: int,
) -> list[Result]:
    """Words/s of whole documents."""
    speeds = measure(
        _subjects(rows, pipelines),
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
    rows: Sequence[Row],
    condition: Condition,
    pipelines: Pipelines,
    sentences: Sequence[str],
    *,
    repeats: int,
) -> list[Result]:
    """p50 of `nlp(sentence)`."""
    speeds = measure(
        _subjects(rows, pipelines),
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
    rows: Sequence[Row], pipelines: Pipelines, light: str, *, starts: int
) -> tuple[list[Result], dict[str, Any]]:
    """Seconds from process start to the first doc, and peak memory by then; ours in the light
    environment, which is described too. A first start of each fills the system's file cache."""
    results = []
    environment: dict[str, Any] = {}
    seen: dict[tuple[str, str, Condition], dict[Kind, list[list[float]]]] = {}
    for row in rows:
        for condition in row.conditions:
            key = (row.ours, row.theirs, condition)
            if key not in seen:
                sides = [
                    PipelineSource(str(pipelines.path(row.ours)), light),
                    PipelineSource(str(pipelines.path(row.theirs))),
                ]
                seen[key] = {"cold start": [[], []], "memory": [[], []]}
                with texts_file([]) as file:
                    for i in range(starts + 1):
                        _log(condition, "cold start")(f"Start {i} of {starts}")
                        for side, subject in enumerate(sides):
                            with Worker(
                                subject,
                                file,
                                threads=condition.threads,
                                pin_cores=condition.pin_cores,
                            ) as worker:
                                if i:
                                    start = worker.load.cold_start_seconds
                                    seen[key]["cold start"][side].append(start)
                                    seen[key]["memory"][side].append(worker.peak_rss_bytes())
                                elif side == 0:
                                    environment = worker.environment(PACKAGES)
            ours, theirs = seen[key][row.kind]
            results.append(judge(row, condition, ours, theirs))
    return results, environment


def find_sentences(docs: Path) -> list[str]:
    """Sentences of 20 spaCy tokens; where none is marked, the documents' first 20 tokens."""
    nlp = spacy.blank("en")
    found: list[str] = []
    beginnings: list[str] = []
    for example in read_examples(nlp, docs):
        gold = example.reference
        spans = list(gold.sents) if gold.has_annotation("SENT_START") else []
        found += [s.text for s in spans if _n_words(nlp, s.text) == SENTENCE_WORDS]
        beginning: Doc = example.predicted
        if len(beginning) >= SENTENCE_WORDS:
            beginnings.append(beginning[:SENTENCE_WORDS].text)
    sentences = (found or beginnings)[:MAX_SENTENCES]
    if not sentences:
        raise ConfigError(f"{docs}: no document has {SENTENCE_WORDS} words.")
    return sentences


def _n_words(nlp: spacy.language.Language, text: str) -> int:
    return len(nlp.make_doc(text))


# The light environment


def make_light_environment(path: Path) -> str:
    """A virtual environment with the base install of this repository. RETURNS: its python."""
    python = path / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    msg.info(f"Making {path}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(path)], check=True)
    with TemporaryDirectory() as directory:
        # A build leaves its files beside the sources.
        for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(REPO / name, directory)
        shutil.copytree(REPO / "spacy_distil", Path(directory) / "spacy_distil")
        install = [str(python), "-m", "pip", "install", "-q", "-c", str(REPO / "constraints.txt")]
        subprocess.run([*install, directory], check=True)
    return str(python)


# Rows, and what is written


def _choose(keys: str) -> list[Row]:
    chosen = [key.strip() for key in keys.split(",") if key.strip()] or [row.key for row in ROWS]
    known = {row.key: row for row in ROWS}
    for key in chosen:
        if key not in known:
            raise ConfigError(f"--rows {key}: expected some of {', '.join(known)}.")
    return [known[key] for key in chosen]


def _groups(rows: Sequence[Row], kind: Kind) -> list[tuple[Condition, list[Row]]]:
    """The rows of one kind that are measured in the same rounds."""
    groups: dict[tuple[str, Condition], list[Row]] = {}
    for row in rows:
        if row.kind == kind:
            for condition in row.conditions:
                groups.setdefault((row.group, condition), []).append(row)
    return [(condition, group) for (_, condition), group in groups.items()]


def _subjects(rows: Sequence[Row], pipelines: Pipelines) -> dict[str, PipelineSource]:
    names = dict.fromkeys(name for row in rows for name in (row.ours, row.theirs))
    return {name: PipelineSource(str(pipelines.path(name))) for name in names}


def _log(condition: Condition, what: str) -> Callable[[str], None]:
    return lambda message: msg.info(f"{condition.title}, {what}: {message}")


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.resolve()


def _write(
    results: Sequence[Result],
    settings: dict[str, Any],
    light: dict[str, Any] | None,
    date: str,
    output: Path,
) -> None:
    """The JSON file and the Markdown file."""
    data = {
        "settings": settings,
        "light_environment": light,
        "results": [{**asdict(result), "met": result.met} for result in results],
    }
    about = (
        f"{settings['n_docs']} documents of {settings['docs']} (BERT-base: "
        f"{settings['n_docs_bert_base']}), in batches of {settings['batch_size']}; "
        f"{settings['n_sentences']} sentences of {SENTENCE_WORDS} words, one at a time. Ours and "
        f"theirs take turns, each in a process of its own: medians (range) of "
        f"{settings['repeats']} rounds and {settings['starts']} starts; the ratio is that of each "
        f"round."
    )
    save_results(output, STEM, data, [make_table(results).to_markdown(), about], date=date)


if __name__ == "__main__":
    typer.run(main)
