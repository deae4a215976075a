"""The passes of documents through a pipeline, and samples of the memory of the process."""

from __future__ import annotations

import ctypes
import gc
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
import psutil
from spacy.language import Language
from spacy.tokens import Doc

from spacy_distil.pipelines import load_pipeline
from spacy_distil.report.process import WorkerError
from spacy_distil.report.worker import peak_rss

# The C library of this process.
LIBC = None if sys.platform == "win32" else ctypes.CDLL(None)
# Number of samples in one pass through `nlp.pipe`.
SAMPLES = 40


class PassSample(NamedTuple):
    """Resident memory after a number of documents and tokens of a pass."""

    n_docs: int
    n_tokens: int
    rss_bytes: int


@dataclass(frozen=True)
class Workload:
    """The documents that each pipeline processes.

    sentences: their texts.
    n_docs: number of documents in the passes outside of memory zones.
    zone_docs: number of documents in the pass with memory zones; 0 leaves that pass out.
    zone: number of documents per zone.
    batch_size: number of documents per batch.
    """

    sentences: Sequence[str]
    n_docs: int
    zone_docs: int
    zone: int
    batch_size: int


@dataclass(frozen=True)
class PipelineMemory:
    """Memory of the process that runs a pipeline.

    loaded_bytes: resident memory once the pipeline is loaded.
    dropped: samples of the pass that keeps no docs.
    zones: samples after each memory zone.
    kept: samples before and after the pass that keeps all docs.
    peak_bytes: peak memory until the end of the first pass, loading included.
    array_bytes: size of the arrays that the kept docs hold.
    seconds: duration of each pass.
    """

    loaded_bytes: int
    dropped: list[PassSample]
    zones: list[PassSample]
    kept: list[PassSample]
    peak_bytes: int
    array_bytes: int
    seconds: list[float]

    @property
    def passes(self) -> dict[str, list[PassSample]]:
        """The samples of each pass, by its name."""
        return {"dropped": self.dropped, "zones": self.zones, "kept": self.kept}

    @property
    def growth(self) -> float:
        """Growth of the pass that keeps no docs, see `growth`."""
        return growth(rss_of(self.dropped))

    @property
    def zones_growth(self) -> float:
        return growth(rss_of(self.zones))

    @property
    def bytes_per_token(self) -> float:
        """Growth of resident memory while all docs are kept."""
        before, after = self.kept
        return (after.rss_bytes - before.rss_bytes) / after.n_tokens

    @property
    def array_bytes_per_token(self) -> float:
        return self.array_bytes / self.kept[1].n_tokens

    def is_within(self, other: PipelineMemory) -> bool:
        """Whether the pass that keeps no docs takes no more memory than another pipeline's, both in
        the last quarter and at the peak.
        """
        return (
            last_quarter(rss_of(self.dropped)) <= last_quarter(rss_of(other.dropped))
            and self.peak_bytes <= other.peak_bytes
        )


def growth(rss: Sequence[float]) -> float:
    """Growth of the median from the second quarter of the samples to the last, as a share."""
    return last_quarter(rss) / second_quarter(rss) - 1


def second_quarter(rss: Sequence[float]) -> float:
    """The median of the second quarter of the samples."""
    quarter = max(1, len(rss) // 4)
    return median(rss[quarter : 2 * quarter] or rss[:1])


def last_quarter(rss: Sequence[float]) -> float:
    """The median of the last quarter of the samples."""
    return median(rss[-max(1, len(rss) // 4) :])


def rss_of(samples: Sequence[PassSample]) -> list[int]:
    return [each.rss_bytes for each in samples]


# Texts


def make_texts(sentences: Sequence[str], n: int) -> Iterator[str]:
    """Make `n` different texts."""
    for i, sentence in enumerate(itertools.islice(itertools.cycle(sentences), n)):
        yield f"{sentence} Word{i:x}"


def repeat_texts(sentences: Sequence[str], n: int) -> Iterator[str]:
    """Repeat sentences until there are `n`. The first quarter of them contains all."""
    return itertools.islice(itertools.cycle(sentences[: max(1, n // 4)]), n)


# Passes


def measure_in_process(pipeline: str, workload: Workload) -> PipelineMemory:
    """Call `measure` in a fresh process."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as executor:
        try:
            return executor.submit(measure, pipeline, workload).result()
        except BrokenProcessPool as error:
            raise WorkerError(
                f"The process that ran {pipeline} was killed, perhaps because memory ran out. It "
                f"kept {workload.n_docs:,} documents. Lower --n-docs."
            ) from error


def measure(pipeline: str, workload: Workload) -> PipelineMemory:
    """Run all passes in this process."""
    nlp = load_pipeline(pipeline)
    loaded = resident()
    # The loaded objects stay. Collecting garbage among them before each sample would take long.
    gc.freeze()
    every, size = max(1, workload.n_docs // SAMPLES), workload.batch_size
    texts = partial(repeat_texts, workload.sentences, workload.n_docs)
    starts = [perf_counter()]
    dropped = sample(nlp, texts(), every=every, batch_size=size)
    peak = peak_rss()
    starts.append(perf_counter())
    unique = make_texts(workload.sentences, workload.zone_docs)
    zones = sample_zones(nlp, unique, zone=workload.zone, batch_size=size)
    starts.append(perf_counter())
    docs, kept = keep_all(nlp, texts(), batch_size=size)
    starts.append(perf_counter())
    return PipelineMemory(
        loaded_bytes=loaded,
        dropped=dropped,
        zones=zones,
        kept=kept,
        # The system counts the peak less exactly than the current size.
        peak_bytes=max(peak, *rss_of(dropped)),
        array_bytes=count_array_bytes(docs),
        seconds=[end - start for start, end in itertools.pairwise(starts)],
    )


def sample(nlp: Language, texts: Iterable[str], *, every: int, batch_size: int) -> list[PassSample]:
    """Run one `nlp.pipe` and keep no doc. RETURNS: a sample after every N documents and at the
    end.
    """
    samples: list[PassSample] = []
    n_docs = n_tokens = 0
    for n_docs, doc in enumerate(nlp.pipe(texts, batch_size=batch_size), start=1):
        n_tokens += len(doc)
        if n_docs % every == 0:
            samples.append(PassSample(n_docs, n_tokens, resident()))
    if n_docs % every:
        samples.append(PassSample(n_docs, n_tokens, resident()))
    return samples


def keep_all(
    nlp: Language, texts: Iterable[str], *, batch_size: int
) -> tuple[list[Doc], list[PassSample]]:
    """Run one `nlp.pipe` and keep all docs.

    Both samples are taken while no batch is being processed, and after the free memory of earlier
    batches was returned to the system. Docs would otherwise fill that memory unnoticed.

    RETURNS: the docs, and a sample before and after.
    """
    before = PassSample(0, 0, resident(trim=True))
    docs = list(nlp.pipe(texts, batch_size=batch_size))
    return docs, [before, PassSample(len(docs), sum(map(len, docs)), resident(trim=True))]


def sample_zones(
    nlp: Language, texts: Iterable[str], *, zone: int, batch_size: int
) -> list[PassSample]:
    """Process the texts in memory zones. RETURNS: a sample after each zone.

    zone: number of documents per zone.
    """
    samples = []
    n_docs = n_tokens = 0
    texts = iter(texts)
    while chunk := list(itertools.islice(texts, zone)):
        with nlp.memory_zone():
            n_tokens += sum(map(len, nlp.pipe(chunk, batch_size=batch_size)))
        n_docs += len(chunk)
        samples.append(PassSample(n_docs, n_tokens, resident()))
    return samples


# Memory


def resident(*, trim: bool = False) -> int:
    """Resident memory of this process in bytes, after a garbage collection.

    trim: first return free memory to the system, if the allocator is glibc's.
    """
    gc.collect()
    if trim and (malloc_trim := getattr(LIBC, "malloc_trim", None)):
        malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def count_array_bytes(docs: Iterable[Doc]) -> int:
    """Count the bytes of the arrays that docs hold, each array once. If a doc holds a view, the
    whole array behind it counts.
    """
    owners = {}
    for doc in docs:
        for array in _arrays(doc):
            while isinstance(array.base, np.ndarray):
                array = array.base
            owners[id(array)] = array.nbytes
    return sum(owners.values())


def _arrays(doc: Doc) -> Iterator[np.ndarray]:
    """The arrays in `doc.tensor` and in the `doc._.trf_data` of spacy-transformers."""
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
