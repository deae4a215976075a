"""Speed, memory and load time of pipelines on the CPU, each in a process of its own.

The processes stay alive and take turns, one at a time (A, B, C, A, B, C, ...): what slows the
machine down for a while slows down all of them, and no pipeline profits from another's caches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from types import TracebackType
from typing import Any

from spacy_distil.errors import DistilError

# Fresh processes in which loading is timed.
LOAD_REPEATS = 3
_STDERR_LINES = 20


class WorkerError(DistilError):
    """The process that measures a pipeline ended before it was done."""


@dataclass(frozen=True)
class Load:
    """One start in a fresh process, in seconds.

    cold_start_seconds: from the start of the process to the first doc processed.
    load_seconds: `spacy.load` alone.
    first_doc_seconds: the first, short, doc.
    """

    cold_start_seconds: float
    load_seconds: float
    first_doc_seconds: float


@dataclass(frozen=True)
class Pass:
    """One time through all texts.

    at: when it began, in seconds since the measurement did.
    words: spaCy tokens.
    seconds: of wall time.
    """

    at: float
    words: int
    seconds: float

    @property
    def words_per_second(self) -> float:
        return self.words / self.seconds


@dataclass
class Speed:
    """What was measured of one pipeline.

    passes: in the order of the rounds; `warm_up` came before them and does not count.
    peak_rss_bytes: most memory held until the end of the first pass.
    """

    loads: list[Load] = field(default_factory=list)
    warm_up: Pass | None = None
    passes: list[Pass] = field(default_factory=list)
    peak_rss_bytes: int = 0

    def summary(self) -> dict[str, Any]:
        """Medians, spread and raw timings, for JSON."""
        rates = [one.words_per_second for one in self.passes]
        return {
            "words_per_second": median(rates),
            "words_per_second_min": min(rates),
            "words_per_second_max": max(rates),
            "peak_rss_bytes": self.peak_rss_bytes,
            "load_seconds": median(load.load_seconds for load in self.loads),
            "cold_start_seconds": median(load.cold_start_seconds for load in self.loads),
            "raw": asdict(self),
        }


class Worker:
    """A running `spacy_distil.report.worker`; a context manager that ends it."""

    def __init__(self, pipeline: str, texts: Path, *, threads: int, batch_size: int) -> None:
        """Start the process and wait until it has processed its first doc.

        pipeline: path or package name.
        texts: file with a JSON list of strings.
        threads: for torch and for the math libraries below numpy.
        batch_size: of `nlp.pipe`, in documents.
        """
        self.pipeline = pipeline
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        command = [sys.executable, "-m", "spacy_distil.report.worker", pipeline, str(texts)]
        command += ["--batch-size", str(batch_size), "--threads", str(threads)]
        start = perf_counter()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **cpu_environment(threads)},
            text=True,
            encoding="utf-8",
        )
        try:
            ready = self._read()
        except BaseException:
            self.close()
            raise
        self.load = Load(cold_start_seconds=perf_counter() - start, **ready)

    def run(self, *, since: float) -> Pass:
        """Process all texts once. since: when the measurement began, of `perf_counter`."""
        at = perf_counter() - since
        return Pass(at=at, **self._ask("run"))

    def peak_rss_bytes(self) -> int:
        """Most memory that the process has held so far."""
        return int(self._ask("memory")["peak_rss_bytes"])

    def close(self) -> None:
        """End the process. Without effect where it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            try:
                stream.close()
            except BrokenPipeError:  # a command that the ended process had not read
                continue

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> WorkerError:
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode("utf-8", errors="replace").splitlines()
        return WorkerError(
            f"Measuring {self.pipeline} failed: its process ended with code {code}"
            + (" (killed, perhaps for want of memory)" if code == -9 else "")
            + ". It said last:\n"
            + "\n".join(said[-_STDERR_LINES:])
        )


def cpu_environment(threads: int) -> dict[str, str]:
    """Environment variables that hide GPUs and set the number of threads of math libraries."""
    pools = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "RAYON")
    return {
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
        "VECLIB_MAXIMUM_THREADS": str(threads),
        **{f"{pool}_NUM_THREADS": str(threads) for pool in pools},
    }


def measure(
    pipelines: Mapping[str, str],
    texts: Sequence[str],
    *,
    repeats: int = 5,
    load_repeats: int = LOAD_REPEATS,
    threads: int = 2,
    batch_size: int = 256,
    log: Callable[[str], None] = lambda message: None,
) -> dict[str, Speed]:
    """Load time, speed and peak memory of each pipeline, in interleaved rounds.

    pipelines: name to path or package name.
    repeats: timed rounds over all texts; one more comes first, to warm up.
    load_repeats: fresh processes in which each is loaded.
    threads, batch_size: see `Worker`.
    log: told what is being done.
    """
    speeds = {name: Speed() for name in pipelines}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        file = Path(directory) / "texts.json"
        file.write_text(json.dumps(list(texts)), encoding="utf-8")
        workers: dict[str, Worker] = {}
        for i in range(load_repeats):
            log(f"Load time, start {i + 1} of {load_repeats}")
            for name, pipeline in pipelines.items():
                worker = Worker(pipeline, file, threads=threads, batch_size=batch_size)
                speeds[name].loads.append(worker.load)
                if i < load_repeats - 1:
                    worker.close()
                else:
                    workers[name] = stack.enter_context(worker)
        since = perf_counter()
        log("Speed, warm-up")
        for name, worker in workers.items():
            speeds[name].warm_up = worker.run(since=since)
            speeds[name].peak_rss_bytes = worker.peak_rss_bytes()
        for i in range(repeats):
            log(f"Speed, round {i + 1} of {repeats}")
            for name, worker in workers.items():
                speeds[name].passes.append(worker.run(since=since))
    return speeds
