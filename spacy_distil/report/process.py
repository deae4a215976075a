"""A pipeline in a process of its own, which measures it on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

from spacy_distil.errors import ConfigError, DistilError
from spacy_distil.report import worker

_STDERR_LINES = 20


class WorkerError(DistilError):
    """The process that measures a pipeline ended before it was done."""


@dataclass(frozen=True)
class Subject:
    """What is measured.

    pipeline: path or package name.
    python: the interpreter that runs it, in an environment of its own; `None` for this one.
    """

    pipeline: str
    python: str | None = None


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
    batch_size: of `nlp.pipe`, in documents.
    """

    at: float
    words: int
    seconds: float
    batch_size: int

    @property
    def words_per_second(self) -> float:
        return self.words / self.seconds


class Worker:
    """A running `worker.py`; a context manager that ends it."""

    def __init__(
        self, subject: Subject, texts: Path, *, threads: int, pin_cores: int | None = None
    ) -> None:
        """Start the process and wait until it has processed its first doc.

        texts: file with a JSON list of strings.
        threads: for the engines, torch, and the math libraries below numpy.
        pin_cores: number of cores that the process is confined to; `None` for all. On Linux.
        """
        self.subject = subject
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        command = [subject.python or sys.executable, str(Path(worker.__file__).resolve())]
        command += [subject.pipeline, str(texts), "--threads", str(threads)]
        command += ["--pin-cores", str(pin_cores or 0)]
        environment = {**os.environ, **cpu_environment(threads)}
        if subject.python is not None:
            # They name modules of this environment.
            for variable in ("PYTHONPATH", "PYTHONHOME"):
                environment.pop(variable, None)
        start = perf_counter()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            self._stderr.close()
            raise ConfigError(f"{command[0]} cannot be run: {error.strerror or error}.") from error
        try:
            ready = self._read()
        except BaseException:
            self.close()
            raise
        # Where the pipeline lies, as its own environment finds it.
        self.path = Path(ready.pop("path"))
        self.load = Load(cold_start_seconds=perf_counter() - start, **ready)

    def run(self, batch_size: int, *, since: float) -> Pass:
        """Process all texts once.

        batch_size: of `nlp.pipe`, in documents.
        since: when the measurement began, of `perf_counter`.
        """
        at = perf_counter() - since
        return Pass(at=at, batch_size=batch_size, **self._ask("run", batch_size=batch_size))

    def latencies(self, n: int) -> list[float]:
        """Seconds of `nlp(text)` for each of `n` texts, spread evenly over all of them."""
        seconds: list[float] = self._ask("latency", n=n)["seconds"]
        return seconds

    def score(self, gold: Path, *, batch_size: int, limit: int = 0) -> dict[str, Any]:
        """spaCy's scores on annotated documents, the first `limit` of them (0 for all)."""
        path = str(gold.resolve())
        scores: dict[str, Any] = self._ask("score", gold=path, batch_size=batch_size, limit=limit)[
            "scores"
        ]
        return scores

    def peak_rss_bytes(self) -> int:
        """Most memory that the process has held so far."""
        return int(self._ask("memory")["peak_rss_bytes"])

    def environment(self, packages: Sequence[str]) -> dict[str, Any]:
        """Its "python", and the "versions" of the packages, `None` for a missing one."""
        return self._ask("environment", packages=list(packages))

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

    def _ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
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
            f"Measuring {self.subject.pipeline} failed: its process ended with code {code}"
            + (" (killed, perhaps for want of memory)" if code == -9 else "")
            + ". It said last:\n"
            + "\n".join(said[-_STDERR_LINES:])
        )


def check_pin_cores(n: int | None) -> None:
    """Raise ConfigError where processes cannot be confined to that many cores."""
    if n is None:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError(
            f"pin_cores = {n}: this system ({sys.platform}) cannot confine processes to cores. "
            "Leave it out; threads work everywhere."
        )
    available = len(os.sched_getaffinity(0))
    if not 1 <= n <= available:
        raise ConfigError(
            f"pin_cores = {n}: expected 1 to {available}, the cores that this process may use."
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
