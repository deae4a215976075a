"""Memory of a pipeline over many short documents, ours against spacy-transformers.

    python -m benchmarks.memory PIPELINE DOCS.spacy [--n-docs 10000] [--output benchmarks/ewt]

PIPELINE is a trained one of ours on torch. It is measured, and so are its int8 version, made by
`spacy distil quantize`, and its twin on spacy-transformers: the same weights, stock settings. Each
has a process of its own, in which the documents pass three times:

1. through one `nlp.pipe`, and the caller keeps none. Resident memory is flat when the last quarter
   of the samples holds what the second quarter held. Outside of zones spaCy's vocab keeps every new
   word, whatever pipeline reads it. So the documents are a few sentences of DOCS.spacy, over and
   over, all of which were seen by the end of the first quarter: what grows is not the vocab;
2. in zones of `nlp.memory_zone`, which empty the vocab: ten times as many documents, each with a
   word in it that no other one has;
3. as in 1, and the caller keeps all. What resident memory grows by is what the docs take; the
   arrays that they keep alive are counted one by one, too. Memory that is free but was not given
   back to the system does not count here: docs would fill it up before the process grows.

Garbage is collected before each sample.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any, NamedTuple

import numpy as np
import psutil
import spacy
import typer
from spacy.language import Language
from spacy.tokens import Doc
from wasabi import msg

from benchmarks.common.pipelines import Pipelines, Sources
from benchmarks.common.results import save_results
from spacy_distil.errors import ConfigError, friendly_errors, require
from spacy_distil.pipelines import check_pipeline, load_pipeline
from spacy_distil.report.layout import MISSING, TIMES, count
from spacy_distil.report.machine import command_line
from spacy_distil.report.process import WorkerError, cpu_environment
from spacy_distil.report.worker import peak_rss
from spacy_distil.tables import Table
from spacy_distil.text.documents import read_examples

STEM = "memory"
# The C library of this process, where there is one to ask.
LIBC = None if sys.platform == "win32" else ctypes.CDLL(None)
# Rows of the table of samples.
SHOWN = 20
# Samples in one pass through `nlp.pipe`.
SAMPLES = 40
# Growth of the median from the second quarter to the last that still counts as flat.
FLAT = 0.05
FLAT_IN_ZONES = 0.02
# Title, and name in `Pipelines`, by the key that `--subjects` knows.
TORCH, INT8, THEIRS = "torch", "int8", "theirs"
SUBJECTS = {
    TORCH: ("spacy-distil, torch float32", "heads"),
    INT8: ("spacy-distil, ONNX int8", "heads-int8"),
    THEIRS: ("spacy-transformers", "heads-theirs"),
}


class Sample(NamedTuple):
    """Resident memory after so many documents and tokens of a pass."""

    n_docs: int
    n_tokens: int
    rss_bytes: int


@dataclass(frozen=True)
class Plan:
    """What each pipeline goes through.

    sentences: the texts.
    n_docs: documents of the passes outside of zones.
    zone_docs: documents in zones; 0 leaves that pass out.
    zone: documents in one zone.
    batch_size: documents at a time.
    """

    sentences: Sequence[str]
    n_docs: int
    zone_docs: int
    zone: int
    batch_size: int


@dataclass(frozen=True)
class Followed:
    """One pipeline.

    loaded_bytes: resident memory once it is loaded.
    dropped, zones: samples of the first two passes; of the second none where it was left out.
    kept: before and after the third.
    peak_bytes: most resident memory until the end of the first pass, loading included.
    array_bytes: of the arrays that the docs of the last pass keep alive.
    seconds: of each pass.
    """

    loaded_bytes: int
    dropped: list[Sample]
    zones: list[Sample]
    kept: list[Sample]
    peak_bytes: int
    array_bytes: int
    seconds: list[float]

    @property
    def passes(self) -> dict[str, list[Sample]]:
        """The samples by the names of their passes."""
        return {"dropped": self.dropped, "zones": self.zones, "kept": self.kept}

    @property
    def growth(self) -> float:
        """While none is kept, as `grow` has it."""
        return grow(_rss(self.dropped))

    @property
    def zones_growth(self) -> float:
        return grow(_rss(self.zones))

    @property
    def bytes_per_token(self) -> float:
        """Growth of resident memory while all docs are kept."""
        before, after = self.kept
        return (after.rss_bytes - before.rss_bytes) / after.n_tokens

    @property
    def array_bytes_per_token(self) -> float:
        return self.array_bytes / self.kept[1].n_tokens

    def is_within(self, other: Followed) -> bool:
        """Whether it holds no more than another one while none is kept, at its end and at most."""
        return (
            last_quarter(_rss(self.dropped)) <= last_quarter(_rss(other.dropped))
            and self.peak_bytes <= other.peak_bytes
        )


def main(
    pipeline: Annotated[str, typer.Argument(help="Of ours, on torch: directory")],
    docs: Annotated[Path, typer.Argument(metavar="DOCS.spacy", help="Annotated documents")],
    subjects: Annotated[
        str, typer.Option(help=f"Some of {', '.join(SUBJECTS)}, between commas; empty for all")
    ] = "",
    int8: Annotated[
        Path | None, typer.Option(help="The int8 pipeline; else one is made of PIPELINE")
    ] = None,
    quantize: Annotated[str, typer.Option(help="More arguments of `distil quantize`")] = "",
    n_docs: Annotated[int, typer.Option(help="Documents", min=4)] = 10_000,
    zone_docs: Annotated[
        int, typer.Option(help="Documents in zones of memory; 0 for none")
    ] = 100_000,
    zone: Annotated[int, typer.Option(help="Documents in a zone", min=1)] = 1000,
    batch_size: Annotated[int, typer.Option(help="Documents at a time", min=1)] = 256,
    threads: Annotated[int, typer.Option(help="Threads of each process", min=1)] = 2,
    work: Annotated[
        Path | None, typer.Option(help="Directory for the pipelines that are made")
    ] = None,
    reuse: Annotated[bool, typer.Option(help="Take the pipelines that are in --work")] = False,
    output: Annotated[
        Path | None, typer.Option(help=f"Directory for {STEM}.json and {STEM}.md")
    ] = None,
) -> None:
    """Print what each pipeline holds while it runs, and save it."""
    # The processes that measure inherit it.
    os.environ.update(cpu_environment(threads))
    with friendly_errors(), TemporaryDirectory() as directory:
        chosen = choose_subjects(subjects)
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
        plan = Plan(read_sentences(docs), n_docs, zone_docs, zone, batch_size)
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        found = {}
        for key, path in paths.items():
            msg.info(f"Following {SUBJECTS[key][0]}")
            found[key] = follow_apart(str(path.resolve()), plan)
            print(make_table([(n, rss) for n, _, rss in found[key].dropped]).to_text())
    tables = make_tables(found)
    about = (
        f"Sentences of {docs.name}, {found[chosen[0]].kept[-1].n_tokens:,} spaCy tokens in the "
        f"{n_docs:,} documents, in batches of {batch_size}; {count(threads, 'thread')}. Each "
        f"pipeline in a process of its own. Quarters are medians of samples; the peak is the most "
        f"that the process ever held, loading included. Flat: at most {FLAT:+.0%} from the second "
        f"quarter to the last, in zones {FLAT_IN_ZONES:+.0%}."
    )
    print("\n".join([*(table.to_text() for table in tables), about]))
    if output is not None:
        data: dict[str, Any] = {
            "docs": docs.name,
            "n_docs": n_docs,
            "zone_docs": zone_docs,
            "zone": zone,
            "batch_size": batch_size,
            "threads": threads,
            "pipelines": summarize(found),
            "command": command_line(),
        }
        parts = [*(table.to_markdown() for table in tables), about]
        save_results(output, STEM, data, parts, date=date)


def choose_subjects(keys: str) -> list[str]:
    """These keys, in the order of `SUBJECTS`; all where there is none."""
    chosen = {key.strip() for key in keys.split(",") if key.strip()}
    if unknown := chosen - SUBJECTS.keys():
        raise ConfigError(
            f"--subjects {', '.join(sorted(unknown))}: expected some of {', '.join(SUBJECTS)}."
        )
    return [key for key in SUBJECTS if key in (chosen or SUBJECTS)]


# Texts


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


def repeat_texts(sentences: Sequence[str], n: int) -> Iterator[str]:
    """`n` texts, none of which comes for the first time after a quarter of them."""
    return itertools.islice(itertools.cycle(sentences[: max(1, n // 4)]), n)


# Measuring


def follow_apart(pipeline: str, plan: Plan) -> Followed:
    """`follow`, in a fresh process."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as executor:
        try:
            return executor.submit(follow, pipeline, plan).result()
        except BrokenProcessPool as error:
            raise WorkerError(
                f"The process that ran {pipeline} was ended, perhaps for want of memory: it kept "
                f"{plan.n_docs:,} documents. Lower --n-docs."
            ) from error


def follow(pipeline: str, plan: Plan) -> Followed:
    """All passes, in this process."""
    nlp = load_pipeline(pipeline)
    loaded = resident()
    # What is loaded stays: looking through it for garbage before each sample would take a while.
    gc.freeze()
    every, size = max(1, plan.n_docs // SAMPLES), plan.batch_size
    texts = partial(repeat_texts, plan.sentences, plan.n_docs)
    starts = [perf_counter()]
    dropped = sample(nlp, texts(), every=every, batch_size=size)
    peak = peak_rss()
    starts.append(perf_counter())
    unique = make_texts(plan.sentences, plan.zone_docs)
    zones = sample_zones(nlp, unique, zone=plan.zone, batch_size=size)
    starts.append(perf_counter())
    docs, kept = keep_all(nlp, texts(), batch_size=size)
    starts.append(perf_counter())
    return Followed(
        loaded_bytes=loaded,
        dropped=dropped,
        zones=zones,
        kept=kept,
        # The system counts the peak less exactly than the present.
        peak_bytes=max(peak, *_rss(dropped)),
        array_bytes=count_array_bytes(docs),
        seconds=[end - start for start, end in itertools.pairwise(starts)],
    )


def sample(nlp: Language, texts: Iterable[str], *, every: int, batch_size: int) -> list[Sample]:
    """Through one `nlp.pipe`, no doc kept; a sample after each `every` documents and at the end."""
    samples: list[Sample] = []
    n_docs = n_tokens = 0
    for n_docs, doc in enumerate(nlp.pipe(texts, batch_size=batch_size), start=1):
        n_tokens += len(doc)
        if n_docs % every == 0:
            samples.append(Sample(n_docs, n_tokens, resident()))
    if n_docs % every:
        samples.append(Sample(n_docs, n_tokens, resident()))
    return samples


def keep_all(
    nlp: Language, texts: Iterable[str], *, batch_size: int
) -> tuple[list[Doc], list[Sample]]:
    """Through one `nlp.pipe`, all docs kept; a sample before and one after, so that no batch is in
    the making, without what earlier batches left free, which docs would fill up unseen.
    """
    before = Sample(0, 0, resident(trim=True))
    docs = list(nlp.pipe(texts, batch_size=batch_size))
    return docs, [before, Sample(len(docs), sum(map(len, docs)), resident(trim=True))]


def sample_zones(
    nlp: Language, texts: Iterable[str], *, zone: int, batch_size: int
) -> list[Sample]:
    """In memory zones of `zone` documents, a sample after each."""
    samples = []
    n_docs = n_tokens = 0
    texts = iter(texts)
    while chunk := list(itertools.islice(texts, zone)):
        with nlp.memory_zone():
            n_tokens += sum(map(len, nlp.pipe(chunk, batch_size=batch_size)))
        n_docs += len(chunk)
        samples.append(Sample(n_docs, n_tokens, resident()))
    return samples


def resident(*, trim: bool = False) -> int:
    """Resident memory of this process in bytes, garbage collected.

    trim: give memory that is free back to the system first, where the allocator is glibc's.
    """
    gc.collect()
    if trim and (malloc_trim := getattr(LIBC, "malloc_trim", None)):
        malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def count_array_bytes(docs: Iterable[Doc]) -> int:
    """Bytes of the arrays that docs keep alive: each once, and where a doc has a view, all of the
    array that it is a view of.
    """
    owners = {}
    for doc in docs:
        for array in _arrays(doc):
            while isinstance(array.base, np.ndarray):
                array = array.base
            owners[id(array)] = array.nbytes
    return sum(owners.values())


def _arrays(doc: Doc) -> Iterator[np.ndarray]:
    """`doc.tensor`, and what spacy-transformers has in `doc._.trf_data`."""
    yield doc.tensor
    data = doc._.trf_data if doc.has_extension("trf_data") else None
    if data is None:
        return
    for output in data.model_output.values():
        yield from output if isinstance(output, list) else [output]
    pieces = data.wordpieces
    for array in (pieces.input_ids, pieces.attention_mask, pieces.token_type_ids):
        if array is not None:
            yield array
    yield from (data.align.dataXd, data.align.lengths)


# What is said of it


def grow(rss: Sequence[float]) -> float:
    """By how much the median of the last quarter exceeds that of the second, as a share."""
    return last_quarter(rss) / second_quarter(rss) - 1


def second_quarter(rss: Sequence[float]) -> float:
    """Its median."""
    quarter = max(1, len(rss) // 4)
    return median(rss[quarter : 2 * quarter] or rss[:1])


def last_quarter(rss: Sequence[float]) -> float:
    """Its median."""
    return median(rss[-max(1, len(rss) // 4) :])


def _rss(samples: Sequence[Sample]) -> list[int]:
    return [each.rss_bytes for each in samples]


def summarize(found: dict[str, Followed]) -> dict[str, Any]:
    """For JSON, by key: figures, verdicts and samples; `None` for what was not measured."""
    theirs = found.get(THEIRS)
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
        for key, one in found.items()
    }


def make_tables(found: dict[str, Followed]) -> list[Table]:
    """While none is kept, while all are, and in zones where there were any."""
    theirs = found.get(THEIRS)
    dropped, kept, zones = [], [], []
    for key, one in found.items():
        title = SUBJECTS[key][0]
        within = ratio = MISSING
        if theirs is not None and one is not theirs:
            within = _yes(one.is_within(theirs))
            ratio = f"{one.bytes_per_token / theirs.bytes_per_token:.2f}"
        dropped.append([title, *_quarters(one.dropped, FLAT), _mb(one.peak_bytes), within])
        rates = [f"{rate:,.0f}" for rate in (one.bytes_per_token, one.array_bytes_per_token)]
        kept.append([title, rates[0], ratio, rates[1], _mb(one.kept[-1].rss_bytes)])
        if one.zones:
            zones.append([title, *_quarters(one.zones, FLAT_IN_ZONES)])
    first = next(iter(found.values()))
    n_docs = f"{first.dropped[-1].n_docs:,} documents"
    quarters = ["pipeline", "second quarter, MB", "last quarter, MB", "growth", "flat"]
    tables = [
        Table(
            f"{n_docs}, none kept",
            [*quarters, "peak, MB", f"at most that of {SUBJECTS[THEIRS][0]}"],
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


def make_table(samples: Sequence[tuple[int, int]]) -> Table:
    """Some of the samples of a pass, (documents, bytes), evenly spread, the last among them."""
    step = -(-len(samples) // SHOWN)
    shown = samples[::-1][::step][::-1]
    return Table(
        title="Resident memory",
        header=["documents", "MB"],
        rows=[[f"{n:,}", _mb(rss)] for n, rss in shown],
    )


def _quarters(samples: Sequence[Sample], flat: float) -> list[str]:
    rss = _rss(samples)
    growth = grow(rss)
    return [
        _mb(second_quarter(rss)),
        _mb(last_quarter(rss)),
        f"{growth:+.1%}",
        _yes(growth <= flat),
    ]


def _mb(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:,.1f}"


def _yes(verdict: bool) -> str:
    return "yes" if verdict else "no"


if __name__ == "__main__":
    typer.run(main)
