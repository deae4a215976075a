"""Measure where the time of pipelines goes, pipe by pipe, on one core.

    python -m benchmarks.stages int8=PIPELINE cnn=PIPELINE DOCS.spacy --output DIR

The documents are tokenized already. Each pipe predicts a batch, then annotates it, then the next
pipe follows; nothing is encoded ahead. The time of our encoder has two parts, pieces (their
alignment with tokens included) and vectors. A second table has the time of `nlp(text)` for texts of
20 words and for whole documents, one at a time. Pipelines take turns, round by round.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer
from spacy.language import Language
from spacy.pipeline import TrainablePipe
from spacy.tokens import Doc
from spacy.util import minibatch
from wasabi import msg

from benchmarks.common.options import BatchSize, Limit, OptionalOutput, Repeats, Stem
from benchmarks.common.results import Part, report_results, timestamp
from benchmarks.common.rounds import describe_round, in_turn
from spacy_distil.component.pipe import DistilTransformerPipe
from spacy_distil.component.shim import get_encoder
from spacy_distil.errors import ConfigError, CorpusError, friendly_errors
from spacy_distil.pipelines import load_pipeline
from spacy_distil.report.layout import with_range
from spacy_distil.report.speed import Spread
from spacy_distil.tables import Table
from spacy_distil.text.documents import read_documents

PIECES, VECTORS, PREDICT, ANNOTATE, ALL = "pieces", "vectors", "predict", "annotate", "all"
# Seconds of each stage, in the order of the pipeline.
Stages = dict[str, float]


def run_stages(nlp: Language, docs: Sequence[Doc], batch_size: int) -> Stages:
    """Run a pipeline over docs that it has not seen. RETURNS: seconds, by "PIPE: STAGE"."""
    seconds: dict[str, float] = defaultdict(float)
    for batch in minibatch(docs, size=batch_size):
        for name, pipe in nlp.pipeline:
            for stage, duration in _run_pipe(pipe, list(batch)):
                seconds[f"{name}: {stage}"] += duration
    return dict(seconds)


def _run_pipe(pipe: Any, docs: list[Doc]) -> Iterator[tuple[str, float]]:
    """YIELDS (stage, seconds)."""
    start = perf_counter()
    if not isinstance(pipe, TrainablePipe):
        for doc in docs:
            pipe(doc)
        yield ANNOTATE, perf_counter() - start
        return
    predictions = pipe.predict(docs)
    end = perf_counter()
    pieces = 0.0
    if isinstance(pipe, DistilTransformerPipe):
        # Once more by itself. It is part of `predict`.
        get_encoder(pipe.model)._encode(docs)
        pieces = perf_counter() - end
        yield PIECES, pieces
    yield (VECTORS if pieces else PREDICT), end - start - pieces
    start = perf_counter()
    pipe.set_annotations(docs, predictions)
    yield ANNOTATE, perf_counter() - start


def measure(
    pipelines: Mapping[str, Language], docs: Path, *, limit: int, repeats: int, batch_size: int
) -> tuple[dict[str, list[Stages]], int]:
    """Measure all pipelines. RETURNS: stages of each round, by pipeline; and number of words."""
    rounds: dict[str, list[Stages]] = {name: [] for name in pipelines}
    n_words = 0
    for turn in range(repeats + 1):
        msg.text(describe_round(turn, repeats))
        for name in in_turn(pipelines, turn):
            corpus = read_documents(docs, pipelines[name], limit=limit).docs
            n_words = sum(map(len, corpus))
            fresh = [
                Doc(doc.vocab, [t.text for t in doc], [bool(t.whitespace_) for t in doc])
                for doc in corpus
            ]
            stages = run_stages(pipelines[name], fresh, batch_size)
            if turn:
                rounds[name].append(stages)
    return rounds, n_words


def measure_latency(nlp: Language, texts: Sequence[str]) -> list[float]:
    """Run a pipeline over texts, one at a time. RETURNS: seconds of each."""
    seconds = []
    for text in texts:
        start = perf_counter()
        nlp(text)
        seconds.append(round(perf_counter() - start, 6))
    return seconds


def read_texts(docs: Sequence[Doc], n_words: int) -> dict[str, list[str]]:
    """Read the start of each doc that is long enough, and the whole of each. RETURNS: by kind."""
    starts = [doc[:n_words].text for doc in docs if len(doc) >= n_words]
    if not starts:
        raise CorpusError(f"--words {n_words}: no document has as many")
    return {f"{n_words} words": starts, "whole documents": [doc.text for doc in docs]}


def make_latency_table(latencies: Mapping[str, Mapping[str, list[list[float]]]]) -> Table:
    """latencies: seconds of each text in each round, by pipeline and kind of texts."""
    rows = []
    for name, kinds in latencies.items():
        cells = [name]
        for rounds in kinds.values():
            for percentile in (50, 95):
                values = [float(np.percentile(each, percentile)) * 1e3 for each in rounds]
                cells.append(with_range(Spread.of(values), "{:.2f}"))
        rows.append(cells)
    kinds = next(iter(latencies.values()))
    heads = [f"{kind}, p{percentile}" for kind in kinds for percentile in (50, 95)]
    return Table("One text at a time, milliseconds", ["pipeline", *heads], rows)


def make_table(name: str, rounds: Sequence[Stages], n_words: int) -> Table:
    """Make the table of a pipeline."""
    rows = []
    totals = [sum(stages.values()) for stages in rounds]
    for stage in [*rounds[0], ALL]:
        seconds = totals if stage == ALL else [stages[stage] for stages in rounds]
        times = Spread.of([each / n_words * 1e6 for each in seconds])
        share = f"{sum(seconds) / sum(totals):.0%}"
        rows.append([stage, with_range(times, "{:.2f}"), share])
    return Table(name, ["stage", "microseconds a word", "share"], rows)


def main(
    pipelines: Annotated[list[str], typer.Argument(metavar="NAME=PIPELINE ... DOCS.spacy")],
    limit: Limit = 0,
    repeats: Repeats = 7,
    batch_size: BatchSize = 64,
    words: Annotated[int, typer.Option(help="Words of a short text", min=1)] = 20,
    output: OptionalOutput = None,
    stem: Stem = "stages",
) -> None:
    """Measure the stages of pipelines, print the tables and save them."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    date = timestamp()
    with friendly_errors():
        *named, docs = pipelines
        paths = dict(value.split("=", 1) for value in named if "=" in value)
        if not named or len(paths) != len(named):
            raise ConfigError(
                f"{' '.join(pipelines)}: expected NAME=PIPELINE, once or more, with different "
                "names, and then DOCS.spacy."
            )
        loaded = {name: load_pipeline(path) for name, path in paths.items()}
        rounds, n_words = measure(
            loaded, Path(docs), limit=limit, repeats=repeats, batch_size=batch_size
        )
        latencies: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
        texts = read_texts(
            read_documents(Path(docs), next(iter(loaded.values())), limit=limit).docs, words
        )
        for turn in range(repeats + 1):
            msg.text(f"One text at a time, {describe_round(turn, repeats)}")
            for name in in_turn(loaded, turn):
                for kind, chosen in texts.items():
                    seconds = measure_latency(loaded[name], chosen)
                    if turn:
                        latencies[name][kind].append(seconds)
        latencies = {name: latencies[name] for name in loaded}
    tables = [make_table(name, rounds[name], n_words) for name in rounds]
    about = (
        f"{n_words:,} spaCy tokens, already tokenized, in batches of {batch_size} documents; "
        f"median and range of {repeats} rounds in turns, on one core. One text at a time: from raw "
        f"text, the first {words} words of each document and whole documents."
    )
    data = {
        "docs": Path(docs).name,
        "n_words": n_words,
        "batch_size": batch_size,
        "rounds": rounds,
        "latencies": latencies,
    }
    parts: list[Part] = [*tables, make_latency_table(latencies), about]
    report_results(parts, data, output=output, stem=stem, date=date)


if __name__ == "__main__":
    typer.run(main)
