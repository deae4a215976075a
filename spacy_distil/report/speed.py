"""Speed, latency, memory and load time of pipelines on the CPU, each in a process of its own.

The processes stay alive and take turns, one at a time (A, B, C, A, B, C, ...). A slow spell of the
machine therefore slows all of them down, and no pipeline profits from another's caches.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from spacy_distil.report.process import Load, Pass, PipelineSource, Worker

# Fresh processes in which loading is timed.
LOAD_REPEATS = 3


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum over rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


@dataclass
class Speed:
    """Measurements of one pipeline with one number of threads.

    loads: starts in fresh processes.
    warm_up: the first pass, which does not count; `None` if there was none.
    passes: timed passes in their order.
    latencies: seconds of `nlp(text)`, a list over texts for each round.
    peak_rss_bytes: peak resident memory up to the end of the first pass.
    """

    loads: list[Load] = field(default_factory=list)
    warm_up: Pass | None = None
    passes: list[Pass] = field(default_factory=list)
    latencies: list[list[float]] = field(default_factory=list)
    peak_rss_bytes: int = 0

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes of the passes, ascending."""
        return sorted({one.batch_size for one in self.passes})

    def words_per_second(self, batch_size: int) -> Spread:
        """Spread over the rounds."""
        return Spread.of(
            [one.words_per_second for one in self.passes if one.batch_size == batch_size]
        )

    def percentiles(self, percentile: float) -> list[float]:
        """Compute a percentile of the latencies over texts, in seconds, for each round."""
        return [float(np.percentile(each, percentile)) for each in self.latencies]

    def latency(self, percentile: float) -> Spread | None:
        """Spread of `percentiles` over the rounds; `None` if latency was not measured."""
        return Spread.of(self.percentiles(percentile)) if self.latencies else None

    @property
    def load_seconds(self) -> float:
        return median(load.load_seconds for load in self.loads)

    @property
    def cold_start_seconds(self) -> float:
        return median(load.cold_start_seconds for load in self.loads)

    def summary(self) -> dict[str, Any]:
        """Medians, spread and raw timings for JSON. Words/s refer to the largest batches."""
        rate = self.words_per_second(self.batch_sizes[-1])
        return {
            "words_per_second": rate.median,
            "words_per_second_min": rate.min,
            "words_per_second_max": rate.max,
            "peak_rss_bytes": self.peak_rss_bytes,
            "load_seconds": self.load_seconds,
            "cold_start_seconds": self.cold_start_seconds,
            "raw": asdict(self),
        }


@contextmanager
def texts_file(texts: Sequence[str]) -> Iterator[Path]:
    """Write texts to a temporary file for the workers."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "texts.json"
        file.write_text(json.dumps(list(texts)), encoding="utf-8")
        yield file


def measure(
    pipelines: Mapping[str, PipelineSource],
    texts: Sequence[str],
    *,
    repeats: int = 5,
    load_repeats: int = LOAD_REPEATS,
    threads: int = 2,
    batch_sizes: Sequence[int] = (256,),
    latency_texts: int = 0,
    pin_cores: int | None = None,
    finish: Callable[[str, Worker], None] | None = None,
    log: Callable[[str], Any] = lambda message: None,
) -> dict[str, Speed]:
    """Measure load time, speed, latency and peak memory of each pipeline, in interleaved rounds.

    pipelines: what to measure, by name.
    repeats: timed rounds over all texts, after one pass to warm up.
    load_repeats: fresh processes in which each pipeline is loaded.
    threads, pin_cores: see `Worker`.
    batch_sizes: batch sizes of `nlp.pipe`, in documents. Each round has a pass with each of them.
    latency_texts: number of texts processed one at a time in each round; 0 for none.
    finish: callback that receives the name and the process of each pipeline at the end.
    log: callback that receives a line for each step.
    """
    speeds = {name: Speed() for name in pipelines}
    with texts_file(texts) as file, ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for i in range(load_repeats):
            log(f"Load time, start {i + 1} of {load_repeats}")
            for name, source in pipelines.items():
                worker = Worker(source, file, threads=threads, pin_cores=pin_cores)
                speeds[name].loads.append(worker.load)
                if i < load_repeats - 1:
                    worker.close()
                else:
                    workers[name] = stack.enter_context(worker)
        since = perf_counter()
        log("Speed, warm-up")
        for name, worker in workers.items():
            speeds[name].warm_up = worker.run(max(batch_sizes), since=since)
            speeds[name].peak_rss_bytes = worker.peak_rss_bytes()
        for i in range(repeats):
            log(f"Speed, round {i + 1} of {repeats}")
            for batch_size in batch_sizes:
                for name, worker in workers.items():
                    speeds[name].passes.append(worker.run(batch_size, since=since))
            if latency_texts:
                for name, worker in workers.items():
                    speeds[name].latencies.append(worker.latencies(latency_texts))
        if finish is not None:
            for name, worker in workers.items():
                finish(name, worker)
    return speeds
