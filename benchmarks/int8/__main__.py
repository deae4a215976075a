"""Compare graphs of one encoder: ours, and those that ONNX Runtime makes of the same weights.

    python -m benchmarks.int8 PIPELINE DOCS.spacy [--profile] --output benchmarks/int8/results

All graphs have the weights of a trained pipeline on the torch engine. The benchmark measures, for
each graph: words/s from docs to token vectors, in rounds that take turns, on as many cores as there
are threads (Linux only); the error of the token vectors; the agreement of the pipes' predictions
with those on the torch engine; and whether predictions depend on the other docs of the batch.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import torch
import typer
from spacy.tokens import Doc
from thinc.api import NumpyOps
from wasabi import msg

from benchmarks.common.cells import rate, ratio
from benchmarks.common.options import Docs, Limit, OptionalOutput, Repeats, Threads
from benchmarks.common.results import Part, report_results, timestamp
from benchmarks.common.rounds import describe_round
from benchmarks.int8.graphs import ABOUT, make_shims, runtime_of
from benchmarks.int8.roofline import measure_int8_rate, products_per_word
from spacy_distil.component.shim import EncoderShim
from spacy_distil.encoding import encode_docs, make_batches
from spacy_distil.engines.files import GRAPH
from spacy_distil.engines.onnx import IDS, MASK, POSITIONS
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.export.agreement import Agreement, measure_agreement
from spacy_distil.export.encoders import SourceEncoder, find_encoders, replace_encoders
from spacy_distil.pipelines import load_pipeline
from spacy_distil.report.layout import TIMES, count, percent_rounded_down
from spacy_distil.report.speed import Spread
from spacy_distil.tables import Table
from spacy_distil.text.documents import read_documents

STEM = "int8"
# Number of documents per batch.
BATCH_DOCS = 256
# An operator is left out of the table if its share of the time is smaller in all graphs.
SMALL_SHARE = 0.02


@dataclass(frozen=True)
class GraphResult:
    """The measurements of one graph.

    speeds: words/s in each round.
    error: squared error of the token vectors against torch, relative to their square.
    same_alone: share of the tokens that have the very same vector if their doc is encoded alone.
    n_bytes: size of the graph.
    shares: share of the time, by operator; empty without `--profile`.
    agreement: agreement of the predictions with those on the torch engine.
    """

    speeds: list[float]
    error: float
    same_alone: float
    n_bytes: int
    shares: dict[str, float]
    agreement: Agreement


def main(
    pipeline: Annotated[str, typer.Argument(help="Directory or package, on the torch engine")],
    docs: Docs,
    limit: Limit = 0,
    repeats: Repeats = 5,
    threads: Threads = 1,
    profile: Annotated[bool, typer.Option(help="Also measure the time of each operator")] = False,
    output: OptionalOutput = None,
) -> None:
    """Measure speed, error and agreement of each graph, print the tables and save them."""
    logging.disable(logging.WARNING)  # ONNX Runtime's quantizers log a lot
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    date = timestamp()
    with friendly_errors():
        original, candidate = load_pipeline(pipeline), load_pipeline(pipeline)
        corpus = read_documents(docs, original, limit=limit).docs
        place, on_torch = the_encoder(find_encoders(original))
        source = SourceEncoder(on_torch)
        shims, left_out = make_shims(source, threads)
        exact = vectors_of(on_torch, corpus)
        speeds = measure_speed(shims, corpus, repeats)
        int8_rate, products = measure_int8_rate(threads, repeats), products_per_word(source, corpus)
        results = {}
        for name, shim in shims.items():
            msg.info(f"Agreement: {name}")
            replace_encoders(candidate, {place: shim})
            vectors, alone = vectors_of(shim, corpus), vectors_of(shim, corpus, batch_size=1)
            results[name] = GraphResult(
                speeds=speeds[name],
                error=float(np.square(vectors - exact).sum() / np.square(exact).sum()),
                same_alone=float((alone.view("u4") == vectors.view("u4")).all(axis=1).mean()),
                n_bytes=len(shim.to_files()[GRAPH]),
                shares=profile_operators(shim, corpus, threads)
                if profile and runtime_of(shim) == "onnxruntime"
                else {},
                agreement=measure_agreement(
                    original, candidate, corpus, batch_size=BATCH_DOCS, rounds=0
                ),
            )
    notes = [f"- {name}: {ABOUT[name]}." for name in results]
    notes += [f"- {name} is left out: {reason}" for name, reason in left_out.items()]
    about = (
        f"{len(corpus):,} documents, {sum(map(len, corpus)):,} spaCy tokens, in batches of "
        f"{BATCH_DOCS}. Words/s: median (range) of {repeats} rounds in turns, "
        f"{count(threads, 'thread')}. Shares are rounded down. Of the int8 rate: the layers' "
        f"products with weights, {products / 1e6:.2f} million a word, over the rate of ONNX "
        f"Runtime's MatMulInteger (512 x 384 by 384 x 1536), {int8_rate / 1e9:.0f} billion/s here."
    )
    data = {
        "docs": docs.name,
        "threads": threads,
        "int8_rate": int8_rate,
        "products_per_word": products,
        "results": {name: asdict(result) for name, result in results.items()},
        "left_out": left_out,
    }
    parts: list[Part] = [
        *make_tables(results, products / int8_rate),
        "\n".join(notes),
        about,
    ]
    report_results(parts, data, output=output, stem=STEM, date=date)


def the_encoder(encoders: dict[str, EncoderShim]) -> tuple[str, EncoderShim]:
    """Check that a pipeline has one encoder, on torch. RETURNS: its place and the encoder."""
    engines = [shim.settings.engine for shim in encoders.values()]
    if engines != ["torch"]:
        raise ConfigError(f"Expected one encoder, on the torch engine, but found {engines}.")
    return next(iter(encoders.items()))


# Measuring


def vectors_of(
    shim: EncoderShim, docs: Sequence[Doc], *, batch_size: int = BATCH_DOCS
) -> np.ndarray:
    """Encode docs. RETURNS: the token vectors of all docs, (n_tokens, width) float32."""
    vectors: list[Any] = []
    for begin in range(0, len(docs), batch_size):
        vectors += shim.predict_docs(docs[begin : begin + batch_size], NumpyOps())
    return np.concatenate(vectors)


def measure_speed(
    shims: Mapping[str, EncoderShim], docs: Sequence[Doc], repeats: int
) -> dict[str, list[float]]:
    """Measure words/s of each graph in each round."""
    speeds: dict[str, list[float]] = {name: [] for name in shims}
    for turn in range(repeats + 1):
        msg.info(f"Speed, {describe_round(turn, repeats)}")
        for name, shim in shims.items():
            start = time.perf_counter()
            n_words = len(vectors_of(shim, docs))
            if turn:
                speeds[name].append(n_words / (time.perf_counter() - start))
    return speeds


def profile_operators(shim: EncoderShim, docs: Sequence[Doc], threads: int) -> dict[str, float]:
    """Measure the share of the time that each operator takes. RETURNS: the largest first."""
    loaded, settings = shim.loaded, shim.settings
    tokenizer = loaded.tokenizer
    encoded = encode_docs(
        docs,
        tokenizer,
        window=loaded.window,
        overlap=settings.overlap,
        pooling=settings.pooling,
    )
    batches = make_batches(
        encoded.windows,
        prefix=tokenizer.prefix,
        suffix=tokenizer.suffix,
        pad_id=loaded.pad_id,
        max_batch_pieces=settings.max_batch_pieces or loaded.engine.batch_pieces,
    )
    with tempfile.TemporaryDirectory() as directory:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(directory) / "profile")
        session = onnxruntime.InferenceSession(
            shim.to_files()[GRAPH], options, providers=["CPUExecutionProvider"]
        )
        for batch in batches:
            session.run(None, {IDS: batch.ids, MASK: batch.mask, POSITIONS: batch.positions})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]] += event["dur"]
    return {operator: spent / times.total() for operator, spent in times.most_common()}


# Tables


def make_tables(results: Mapping[str, GraphResult], share_per_word: float) -> list[Table]:
    """Make the tables of speed and vectors, of agreement with torch and with the graph itself, and
    of operators if they were profiled.

    share_per_word: products of a word over the CPU's int8 products/s.
    """
    baseline, first = next(iter(results.items()))
    rows, agreeing = [], []
    for name, result in results.items():
        ratios = [a / b for a, b in zip(result.speeds, first.speeds, strict=True)]
        cells = [rate(Spread.of(result.speeds)), ratio(Spread.of(ratios))]
        cells.append(f"{Spread.of(result.speeds).median * share_per_word:.0%}")
        cells += [
            f"{result.n_bytes / 1e6:.1f}",
            f"{result.error:.1e}",
            percent_rounded_down(result.same_alone),
        ]
        rows.append([name, *cells])
        measures = result.agreement.measures
        shares = [
            f"{percent_rounded_down(m.agreement)} / {percent_rounded_down(m.candidate_alone)}"
            for m in measures
        ]
        agreeing.append([name, *shares])
    header = ["graph", "words/s", f"{TIMES} {baseline}", "of the int8 rate", "MB"]
    header.append("squared error of vectors")
    annotations = [f"{one.pipe} {one.annotation}" for one in first.agreement.measures]
    title = "Predictions that agree with torch / for one doc at a time with those in batches, %"
    tables = [
        Table("Encoder", [*header, "vectors the same alone, %"], rows),
        Table(title, ["graph", *annotations], agreeing),
    ]
    profiles = {name: result.shares for name, result in results.items() if result.shares}
    operators = dict.fromkeys(operator for shares in profiles.values() for operator in shares)
    shown = [
        operator
        for operator in operators
        if any(shares.get(operator, 0) >= SMALL_SHARE for shares in profiles.values())
    ]
    if shown:
        lines = [
            [operator, *(f"{shares.get(operator, 0):.1%}" for shares in profiles.values())]
            for operator in shown
        ]
        tables.append(Table("Time by operator", ["operator", *profiles], lines))
    return tables


if __name__ == "__main__":
    typer.run(main)
