"""Memory of a pipeline over many short documents, in zones of `nlp.memory_zone`.

    python -m benchmarks.memory PIPELINE DOCS.spacy [--n-docs 100000] [--output benchmarks/ewt]

The documents are the sentences of DOCS.spacy, over and over, each with a word in it that no other
one has: so the vocab would grow if nothing emptied it. Resident memory is sampled after each
thousand; it is flat when the last quarter holds what the second quarter held.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psutil
import spacy
import typer
from spacy.language import Language
from wasabi import msg

from spacy_distil.documents import read_examples
from spacy_distil.errors import friendly_errors
from spacy_distil.pipelines import load_pipeline
from spacy_distil.report.layout import measured_on
from spacy_distil.report.machine import describe_machine
from spacy_distil.tables import Table

STEM = "memory"
# Rows of the table.
SHOWN = 20
# Growth of the median from the second quarter to the last that still counts as flat.
FLAT = 0.02


def main(
    pipeline: Annotated[str, typer.Argument(help="Directory or package name")],
    docs: Annotated[Path, typer.Argument(metavar="DOCS.spacy")],
    n_docs: Annotated[int, typer.Option(help="Documents")] = 100_000,
    zone: Annotated[int, typer.Option(help="Documents in a memory zone, and between samples")] = (
        1000
    ),
    batch_size: Annotated[int, typer.Option(help="Documents at a time")] = 256,
    output: Annotated[
        Path | None, typer.Option(help=f"Directory for {STEM}.json and {STEM}.md")
    ] = None,
) -> None:
    """Print resident memory by documents processed, and whether it is flat."""
    with friendly_errors():
        nlp = load_pipeline(pipeline)
        sentences = read_sentences(docs)
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        start = time.perf_counter()
        samples = sample(nlp, sentences, n_docs=n_docs, zone=zone, batch_size=batch_size)
        seconds = time.perf_counter() - start
    growth = grow([rss for _, rss in samples])
    table = make_table(samples)
    verdict = (
        f"{n_docs:,} documents in {seconds:,.0f} s. Median of the last quarter against the second: "
        f"{growth:+.1%} ({'flat' if growth <= FLAT else 'not flat'}: at most {FLAT:+.0%})."
    )
    print(table.to_text())
    print(verdict)
    if output is not None:
        machine = describe_machine()
        output.mkdir(parents=True, exist_ok=True)
        data: dict[str, Any] = {
            "pipeline": pipeline,
            "docs": docs.name,
            "zone": zone,
            "batch_size": batch_size,
            "seconds": seconds,
            "growth": growth,
            "flat": growth <= FLAT,
            "samples": [{"n_docs": n, "rss_bytes": rss} for n, rss in samples],
            "machine": machine,
            "date": date,
        }
        (output / f"{STEM}.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        parts = [table.to_markdown(), verdict, measured_on(machine, date)]
        (output / f"{STEM}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        msg.good(f"Saved {STEM}.json and {STEM}.md to {output}")


def read_sentences(docs: Path) -> list[str]:
    """The documents' sentences; whole documents where none is marked."""
    texts = []
    for example in read_examples(spacy.blank("xx"), docs):
        gold = example.reference
        spans = list(gold.sents) if gold.has_annotation("SENT_START") else [gold[:]]
        texts += [span.text for span in spans if span.text.strip()]
    return texts


def make_texts(sentences: Sequence[str], n: int) -> Iterator[str]:
    """`n` texts, no two of which are the same."""
    for i, sentence in enumerate(itertools.islice(itertools.cycle(sentences), n)):
        yield f"{sentence} Word{i:x}"


def sample(
    nlp: Language, sentences: Sequence[str], *, n_docs: int, zone: int, batch_size: int
) -> list[tuple[int, int]]:
    """Documents processed and resident memory in bytes, after each zone."""
    process = psutil.Process()
    texts = make_texts(sentences, n_docs)
    samples = []
    done = 0
    while done < n_docs:
        with nlp.memory_zone():
            for _ in nlp.pipe(itertools.islice(texts, zone), batch_size=batch_size):
                done += 1
        samples.append((done, process.memory_info().rss))
    return samples


def grow(rss: Sequence[float]) -> float:
    """By how much the median of the last quarter exceeds that of the second, as a share."""
    quarter = max(1, len(rss) // 4)
    second, last = rss[quarter : 2 * quarter] or rss[:1], rss[-quarter:]
    return median(last) / median(second) - 1


def make_table(samples: Sequence[tuple[int, int]]) -> Table:
    """Some of the samples, evenly spread, the last among them."""
    step = -(-len(samples) // SHOWN)
    shown = samples[::-1][::step][::-1]
    return Table(
        title="Resident memory",
        header=["documents", "MB"],
        rows=[[f"{n:,}", f"{rss / 1e6:,.1f}"] for n, rss in shown],
    )


if __name__ == "__main__":
    typer.run(main)
