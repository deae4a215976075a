"""Speed of pipelines by batch size and number of threads, with latency, memory and size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from shutil import which
from typing import Any

import spacy
from wasabi import msg

from spacy_distil.errors import ConfigError
from spacy_distil.pipelines import (
    check_pipeline,
    count_bytes,
    import_code,
    pair_pipes,
    read_config,
)
from spacy_distil.report.aggregation import aggregate
from spacy_distil.report.benchmark_table import to_markdown
from spacy_distil.report.machine import PACKAGES, describe_machine
from spacy_distil.report.page import write_page
from spacy_distil.report.plot import benchmark_panels, save_plot
from spacy_distil.report.predictions import Predictions, read_references
from spacy_distil.report.process import PipelineSource, Worker, check_pin_cores
from spacy_distil.report.reliability.measures import Reliability, measure_pipes
from spacy_distil.report.results import (
    Benchmark,
    BenchmarkedPipeline,
    BenchmarkSettings,
    check_results_directory,
    write_results,
)
from spacy_distil.report.results_page import benchmark_page
from spacy_distil.report.scores import TaskScores, judge_in_worker, score_in_worker
from spacy_distil.report.speed import LOAD_REPEATS, Speed, measure
from spacy_distil.report.verdicts import find_verdicts
from spacy_distil.text.documents import check_test_set, read_documents
from spacy_distil.text.plain_text import TxtDocuments

STEM = "benchmark"
BATCH_SIZES = (1, 16, 256)
THREADS = (1, 2)
LATENCY_TEXTS = 100


def benchmark(
    pipelines: Mapping[str, str | Path | PipelineSource],
    texts: str | Path,
    output: str | Path | None = None,
    *,
    gold: str | Path | None = None,
    limit: int = 0,
    txt_documents: TxtDocuments = "auto",
    threads: Sequence[int] = THREADS,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    repeats: int = 5,
    load_repeats: int = LOAD_REPEATS,
    latency_texts: int = LATENCY_TEXTS,
    pin_cores: int | None = None,
    code: str | Path | None = None,
    title: str = "",
    command: str = "",
    log: Callable[[str], Any] = lambda message: None,
) -> Benchmark:
    """Measure the speed of pipelines on the CPU and write benchmark.json, .md, .html and .png.

        result = benchmark({"cnn": "en_core_web_sm", "ours": "training/int8"}, "texts.txt")
        rate = result.rows[0].speeds[1].words_per_second(256).median

    pipelines: path or package of each pipeline by its name in the tables. A `PipelineSource` adds
        the interpreter that runs it.
    texts: .txt, .jsonl with {"text": ...} in each line, or .spacy.
    output: directory for the results, created if it is missing; `None` to write nothing.
    gold: .spacy file of annotated documents to score the pipelines on. The plot then shows accuracy
        against speed; otherwise it shows speed by batch size.
    limit: only the first N texts and gold documents; 0 for all.
    txt_documents: how a .txt file is divided into texts, see `TxtDocuments`.
    threads: numbers of CPU threads to measure with. All pipelines are measured with the first
        number, then with the next, in new processes.
    batch_sizes: batch sizes of `nlp.pipe` to measure with, in documents.
    repeats: timed rounds over all texts, in which the pipelines take turns. The median counts.
    load_repeats: fresh processes in which each pipeline is loaded. The median counts.
    latency_texts: number of texts processed one at a time in each round, spread over all of them.
    pin_cores: number of cores that each process is confined to; `None` for all. Only on Linux.
    code: Python file with components and functions that pipelines need. The processes that measure
        import it.
    title: heading of the tables and the plot.
    command: command line, for the record.
    log: callback that receives a line for each step.
    RETURNS: all results, raw timings included.

    Raises ConfigError or CorpusError before any measurement if a setting or path cannot work.
    """
    texts = Path(texts)
    output = None if output is None else Path(output)
    gold = None if gold is None else Path(gold)
    sources = {
        name: each if isinstance(each, PipelineSource) else PipelineSource(str(each))
        for name, each in pipelines.items()
    }
    settings = BenchmarkSettings(
        repeats=repeats,
        load_repeats=load_repeats,
        threads=threads,
        batch_sizes=batch_sizes,
        latency_texts=latency_texts,
        pin_cores=pin_cores,
        limit=limit,
    )
    if code is not None:
        import_code(code)  # finds mistakes in it at once
        sources = {name: replace(each, code=str(code)) for name, each in sources.items()}
    _check(sources, settings, output=output, gold=gold)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    machine = describe_machine()
    documents = read_documents(
        texts, spacy.blank("xx"), limit=limit, txt_documents=txt_documents, log=log
    ).texts
    n_gold = 0 if gold is None else len(read_references(gold, limit=limit))

    speeds: dict[str, dict[int, Speed]] = {name: {} for name in sources}
    scores: dict[str, list[TaskScores]] = {}
    predictions: dict[str, Predictions] = {}
    reliability: dict[str, dict[str, Reliability]] = {}
    properties: dict[str, dict[str, Any]] = {}

    def read_properties(name: str, worker: Worker) -> None:
        if gold is not None:
            log(f"Scores of {name}")
            scored, predictions[name] = score_in_worker(
                worker, gold, batch_size=max(batch_sizes), limit=limit
            )
            scores[name] = [scored]
            if worker.source.python is None:
                own = judge_in_worker(worker, gold, batch_size=max(batch_sizes), limit=limit)
                reliability[name] = measure_pipes([own], n_gold)
        properties[name] = {
            "n_bytes": count_bytes(worker.path),
            "environment": worker.environment(PACKAGES),
            "scores": aggregate(scores[name]) if gold is not None else {},
            "reliability": reliability.get(name, {}),
        }

    for n_threads in threads:
        log(f"Threads: {n_threads}")
        measured = measure(
            sources,
            documents,
            repeats=repeats,
            load_repeats=load_repeats,
            threads=n_threads,
            batch_sizes=batch_sizes,
            latency_texts=min(latency_texts, len(documents)),
            pin_cores=pin_cores,
            finish=read_properties if n_threads == threads[-1] else None,
            log=log,
        )
        for name, speed in measured.items():
            speeds[name][n_threads] = speed
    first = next(iter(speeds.values()))[threads[0]]
    result = Benchmark(
        title=title,
        texts=str(texts),
        n_texts=len(documents),
        n_words=first.passes[0].words,
        gold=None if gold is None else str(gold),
        settings=settings,
        machine=machine,
        date=date,
        command=command,
        verdicts=find_verdicts(
            scores,
            {
                name: of_threads[max(threads)].words_per_second(max(batch_sizes))
                for name, of_threads in speeds.items()
            },
            n_docs=n_gold,
        ),
        rows=[
            BenchmarkedPipeline(name=name, source=source, speeds=speeds[name], **properties[name])
            for name, source in sources.items()
        ],
    )
    if output is not None:
        plot = output / f"{STEM}.png"
        write_results(result, to_markdown(result, plot=plot.name), output, stem=STEM)
        save_plot(benchmark_panels(result).draw(title=result.title), plot)
        references = [] if gold is None else read_references(gold, limit=limit)
        write_page(benchmark_page(result, predictions, references), output / f"{STEM}.html")
    return result


def _check(
    sources: Mapping[str, PipelineSource],
    settings: BenchmarkSettings,
    *,
    output: Path | None,
    gold: Path | None,
) -> None:
    """Find every mistake that shows before minutes are spent on measuring."""
    if not sources:
        raise ConfigError("No pipelines to measure: expected one or more.")
    for name in ("repeats", "load_repeats", "threads", "batch_sizes"):
        value = getattr(settings, name)
        values = [value] if isinstance(value, int) else list(value)
        if not values or min(values) < 1:
            shown = ",".join(map(str, values)) or "nothing"
            raise ConfigError(f"{name} = {shown}: expected numbers of at least 1.")
    for name in ("limit", "latency_texts"):
        if getattr(settings, name) < 0:
            raise ConfigError(f"{name} = {getattr(settings, name)}: expected 0 or more.")
    check_pin_cores(settings.pin_cores)
    for source in sources.values():
        if source.python is None:
            check_pipeline(source.pipeline)
            if in_pairs := pair_pipes(read_config(source.pipeline)):
                msg.warn(
                    f"{', '.join(in_pairs)} of {source.pipeline}: a pipe that reads texts in pairs "
                    "does nothing for single documents, so its time is not part of words/s"
                )
        elif which(source.python) is None:
            raise ConfigError(
                f"No interpreter {source.python}: expected the python of an environment with "
                "spaCy in it, such as .venv-light/bin/python."
            )
    if gold is not None:
        check_test_set(gold)
    if output is not None:
        check_results_directory(output, command="benchmark")
