"""Speed, latency, memory and load time of pipelines on the CPU, each in a process of its own.

The processes stay alive and take turns, one at a time (A, B, C, A, B, C, ...): what slows the
machine down for a while slows down all of them, and no pipeline profits from another's caches.
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

from spacy_distil.report.process import Load, Pass, Subject, Worker

# Fresh processes in which loading is timed.
LOAD_REPEATS = 3


@dataclass(frozen=True)
class Spread:
    """A median over rounds, with the least and the most."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


@dataclass
class Speed:
    """What was measured of one pipeline with one number of threads.

    passes: in the order in which they were made; `warm_up` came before them and does not count.
    latencies: seconds of `nlp(text)`, a list over texts for each round.
    peak_rss_bytes: most memory held until the end of the first pass.
    """

    loads: list[Load] = field(default_factory=list)
    warm_up: Pass | None = None
    passes: list[Pass] = field(default_factory=list)
    latencies: list[list[float]] = field(default_factory=list)
    peak_rss_bytes: int = 0

    @property
    def batch_sizes(self) -> list[int]:
        """Those of the passes, ascending."""
        return sorted({one.batch_size for one in self.passes})

    def words_per_second(self, batch_size: int) -> Spread:
        """Over the rounds."""
        return Spread.of(
            [one.words_per_second for one in self.passes if one.batch_size == batch_size]
        )

    def percentiles(self, percentile: float) -> list[float]:
        """That percentile of the latencies over texts, in seconds, of each round."""
        return [float(np.percentile(each, percentile)) for each in self.latencies]

    def latency(self, percentile: float) -> Spread | None:
        """`percentiles` over the rounds; `None` where no latency was taken."""
        return Spread.of(self.percentiles(percentile)) if self.latencies else None

    @property
    def load_seconds(self) -> float:
        return median(load.load_seconds for load in self.loads)

    @property
    def cold_start_seconds(self) -> float:
        return median(load.cold_start_seconds for load in self.loads)

    def summary(self) -> dict[str, Any]:
        """Medians, spread and raw timings, for JSON. Words/s are those of the largest batches."""
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
    """A temporary file of texts, as workers read them."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "texts.json"
        file.write_text(json.dumps(list(texts)), encoding="utf-8")
        yield file


def measure(
    subjects: Mapping[str, Subject],
    texts: Sequence[str],
    *,
    repeats: int = 5,
    load_repeats: int = LOAD_REPEATS,
    threads: int = 2,
    batch_sizes: Sequence[int] = (256,),
    latency_texts: int = 0,
    pin_cores: int | None = None,
    finish: Callable[[str, Worker], None] | None = None,
    log: Callable[[str], None] = lambda message: None,
) -> dict[str, Speed]:
    """Load time, speed, latency and peak memory of each pipeline, in interleaved rounds.

    subjects: pipelines by name.
    repeats: timed rounds over all texts; one pass more comes first, to warm up.
    load_repeats: fresh processes in which each is loaded.
    threads, pin_cores: see `Worker`.
    batch_sizes: of `nlp.pipe`, in documents; each round has a pass with each.
    latency_texts: texts processed one at a time in each round; 0 for none.
    finish: called with each pipeline's name and its process before that is ended.
    log: told what is being done.
    """
    speeds = {name: Speed() for name in subjects}
    with texts_file(texts) as file, ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for i in range(load_repeats):
            log(f"Load time, start {i + 1} of {load_repeats}")
            for name, subject in subjects.items():
                worker = Worker(subject, file, threads=threads, pin_cores=pin_cores)
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
