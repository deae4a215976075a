"""Measure the memory of a pipeline over many short documents, against spacy-transformers.

    python -m benchmarks.memory PIPELINE DOCS.spacy --output benchmarks/memory/results

PIPELINE is a trained one of ours on torch. The benchmark measures it, its int8 version, made by
`spacy distil quantize`, and its twin on spacy-transformers with the same weights and stock
settings. Each runs in a process of its own, in three passes:

1. One `nlp.pipe`, and the caller keeps no doc. Memory is flat if the last quarter of the samples is
   as large as the second. Outside of memory zones spaCy's vocab keeps every new word, whichever
   pipeline reads it. Therefore the documents are a few sentences of DOCS.spacy, repeated. All of
   them occur in the first quarter, so that the vocab does not grow after it.
2. Ten times as many documents in zones of `nlp.memory_zone`, which empty the vocab. Each document
   has a word of its own.
3. As in 1, but the caller keeps all docs. The growth of resident memory is the size of the docs.
   The arrays that they hold are also counted one by one. Free memory is returned to the system
   first, because docs would otherwise fill it unnoticed.

Garbage is collected before each sample.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from wasabi import msg

from benchmarks.common.cells import verdict
from benchmarks.common.documents import read_sentences
from benchmarks.common.options import (
    BatchSize,
    Docs,
    OptionalOutput,
    Quantize,
    Threads,
    choose_keys,
)
from benchmarks.common.pipelines import Pipelines, Sources
from benchmarks.common.results import report_results, timestamp
from benchmarks.memory.passes import (
    PassSample,
    PipelineMemory,
    Workload,
    growth,
    last_quarter,
    measure_in_process,
    rss_of,
    second_quarter,
)
from spacy_distil.errors import friendly_errors, require
from spacy_distil.pipelines import check_pipeline
from spacy_distil.report.layout import MISSING, TIMES, count
from spacy_distil.report.process import cpu_environment
from spacy_distil.tables import Table, megabytes_cell

STEM = "memory"
# Number of rows in the table of samples.
SHOWN = 20
# Growth of the median from the second quarter to the last that still counts as flat.
FLAT = 0.05
FLAT_IN_ZONES = 0.02
# Title, and name in `Pipelines`, by the key in `--subjects`.
TORCH, INT8, THEIRS = "torch", "int8", "theirs"
SUBJECTS = {
    TORCH: ("spacy-distil, torch float32", "heads"),
    INT8: ("spacy-distil, ONNX int8", "heads-int8"),
    THEIRS: ("spacy-transformers", "heads-theirs"),
}


def main(
    pipeline: Annotated[str, typer.Argument(help="Directory of a pipeline of ours, on torch")],
    docs: Docs,
    subjects: Annotated[
        str,
        typer.Option(help=f"Some of {', '.join(SUBJECTS)}, separated by commas; empty for all"),
    ] = "",
    int8: Annotated[
        Path | None, typer.Option(help="The int8 pipeline; left out: it is made from PIPELINE")
    ] = None,
    quantize: Quantize = "",
    n_docs: Annotated[int, typer.Option(help="Number of documents", min=4)] = 10_000,
    zone_docs: Annotated[
        int, typer.Option(help="Number of documents in memory zones; 0 for none")
    ] = 100_000,
    zone: Annotated[int, typer.Option(help="Number of documents per zone", min=1)] = 1000,
    batch_size: BatchSize = 256,
    threads: Threads = 2,
    work: Annotated[Path | None, typer.Option(help="Directory for the pipelines to make")] = None,
    reuse: Annotated[bool, typer.Option(help="Use the pipelines that are in --work")] = False,
    output: OptionalOutput = None,
) -> None:
    """Measure the memory of each pipeline, print it and save it."""
    # The processes that measure inherit the environment.
    os.environ.update(cpu_environment(threads))
    with friendly_errors(), TemporaryDirectory() as directory:
        chosen = choose_keys(subjects, list(SUBJECTS), option="subjects")
        check_pipeline(pipeline)
        if THEIRS in chosen:
            require("spacy_transformers", extra="interop", purpose="A comparison with it")
        teacher = Path(pipeline).resolve()
        sources = Sources(docs=docs.resolve(), teacher=teacher, quantize=quantize.split())
        pipelines = Pipelines(sources, work or Path(directory), reuse=reuse)
        paths = {
            key: int8 if key == INT8 and int8 else pipelines.path(SUBJECTS[key][1])
            for key in chosen
        }
        workload = Workload(read_sentences(docs), n_docs, zone_docs, zone, batch_size)
        date = timestamp()
        memory = {}
        for key, path in paths.items():
            msg.info(f"Measuring {SUBJECTS[key][0]}")
            memory[key] = measure_in_process(str(path.resolve()), workload)
            print(make_sample_table(memory[key].dropped).to_text())
    about = (
        f"Sentences of {docs.name}, {memory[chosen[0]].kept[-1].n_tokens:,} spaCy tokens in the "
        f"{n_docs:,} documents, in batches of {batch_size}; {count(threads, 'thread')}. Each "
        f"pipeline in a process of its own. Quarters are medians of samples; the peak is the most "
        f"that the process ever held, loading included. Flat: at most {FLAT:+.0%} from the second "
        f"quarter to the last, in zones {FLAT_IN_ZONES:+.0%}."
    )
    data = {
        "docs": docs.name,
        "n_docs": n_docs,
        "zone_docs": zone_docs,
        "zone": zone,
        "batch_size": batch_size,
        "threads": threads,
        "pipelines": summarize(memory),
    }
    report_results([*make_tables(memory), about], data, output=output, stem=STEM, date=date)


def summarize(memory: dict[str, PipelineMemory]) -> dict[str, Any]:
    """Summarize the measurements for the JSON file, by key. `None` was not measured."""
    theirs = memory.get(THEIRS)
    return {
        key: {
            **asdict(one),
            **{name: [each._asdict() for each in samples] for name, samples in one.passes.items()},
            "title": SUBJECTS[key][0],
            "growth": one.growth,
            "flat": one.growth <= FLAT,
            "within_theirs": None if theirs is None else one.is_within(theirs),
            "zones_growth": one.zones_growth if one.zones else None,
            "zones_flat": one.zones_growth <= FLAT_IN_ZONES if one.zones else None,
            "bytes_per_token": one.bytes_per_token,
            "array_bytes_per_token": one.array_bytes_per_token,
        }
        for key, one in memory.items()
    }


def make_tables(memory: dict[str, PipelineMemory]) -> list[Table]:
    """Make a table per pass. The one of memory zones is left out if there were none."""
    theirs = memory.get(THEIRS)
    dropped, kept, zones = [], [], []
    for key, one in memory.items():
        title = SUBJECTS[key][0]
        within = ratio = MISSING
        if theirs is not None and one is not theirs:
            within = verdict(one.is_within(theirs))
            ratio = f"{one.bytes_per_token / theirs.bytes_per_token:.2f}"
        dropped.append(
            [title, *_quarters(one.dropped, FLAT), megabytes_cell(one.peak_bytes), within]
        )
        rates = [f"{rate:,.0f}" for rate in (one.bytes_per_token, one.array_bytes_per_token)]
        kept.append([title, rates[0], ratio, rates[1], megabytes_cell(one.kept[-1].rss_bytes)])
        if one.zones:
            zones.append([title, *_quarters(one.zones, FLAT_IN_ZONES)])
    first = next(iter(memory.values()))
    n_docs = f"{first.dropped[-1].n_docs:,} documents"
    quarters = ["pipeline", "second quarter, MB", "last quarter, MB", "growth", "flat"]
    tables = [
        Table(
            f"{n_docs}, none kept",
            [*quarters, "peak, MB", f"at most as much as {SUBJECTS[THEIRS][0]}"],
            dropped,
        ),
        Table(
            f"{n_docs}, all kept",
            [
                "pipeline",
                "bytes per token",
                f"{TIMES} {SUBJECTS[THEIRS][0]}",
                "arrays alone, bytes per token",
                "at the end, MB",
            ],
            kept,
        ),
    ]
    if zones:
        in_zones = f"{first.zones[-1].n_docs:,} documents in zones of {first.zones[0].n_docs:,}"
        tables.append(Table(in_zones, quarters, zones))
    return tables


def make_sample_table(samples: Sequence[PassSample]) -> Table:
    """Make a table of evenly spaced samples of a pass. It ends with the last sample."""
    step = -(-len(samples) // SHOWN)
    shown = samples[::-1][::step][::-1]
    return Table(
        title="Resident memory",
        header=["documents", "MB"],
        rows=[[f"{each.n_docs:,}", megabytes_cell(each.rss_bytes)] for each in shown],
    )


def _quarters(samples: Sequence[PassSample], flat: float) -> list[str]:
    rss = rss_of(samples)
    share = growth(rss)
    return [
        megabytes_cell(second_quarter(rss)),
        megabytes_cell(last_quarter(rss)),
        f"{share:+.1%}",
        verdict(share <= flat),
    ]


if __name__ == "__main__":
    typer.run(main)
