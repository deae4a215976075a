"""A process of its own for each pipeline, which measures it on the CPU."""

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
from spacy_distil.pipelines import loading_problem, one_line
from spacy_distil.report import worker

_STDERR_LINES = 20


class WorkerError(DistilError):
    """The process that measures a pipeline ended too early."""


@dataclass(frozen=True)
class PipelineSource:
    """A pipeline to measure, and the interpreter that runs it.

    pipeline: path or package name.
    python: path of an interpreter in an environment of its own; `None` for the current one.
    code: Python file to import before the pipeline is loaded; `None` for none.
    """

    pipeline: str
    python: str | None = None
    code: str | None = None


@dataclass(frozen=True)
class Load:
    """Durations of one start in a fresh process, in seconds.

    cold_start_seconds: from the start of the process to the end of the first doc.
    load_seconds: `spacy.load` alone.
    first_doc_seconds: the first doc, a short one.
    """

    cold_start_seconds: float
    load_seconds: float
    first_doc_seconds: float


@dataclass(frozen=True)
class Pass:
    """One pass over all texts.

    at: start of the pass, in seconds since the start of the measurement.
    words: number of spaCy tokens.
    seconds: wall time.
    batch_size: batch size of `nlp.pipe`, in documents.
    """

    at: float
    words: int
    seconds: float
    batch_size: int

    @property
    def words_per_second(self) -> float:
        return self.words / self.seconds


class Worker:
    """A running `worker.py`. As a context manager, it ends the process."""

    def __init__(
        self, source: PipelineSource, texts: Path, *, threads: int, pin_cores: int | None = None
    ) -> None:
        """Start the process and wait until it has processed its first doc.

        texts: file with a JSON list of strings.
        threads: number of threads for the engines, torch and the math libraries below numpy.
        pin_cores: number of cores that the process is confined to; `None` for all. Only on Linux.
        """
        self.source = source
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        command = [source.python or sys.executable, str(Path(worker.__file__).resolve())]
        command += [source.pipeline, str(texts), "--threads", str(threads)]
        command += ["--pin-cores", str(pin_cores or 0)]
        if source.code is not None:
            command += ["--code", source.code]
        environment = {**os.environ, **cpu_environment(threads)}
        if source.python is not None:
            # These name modules of the current environment.
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
        # The pipeline's directory, as found in its own environment.
        self.path = Path(ready.pop("path"))
        self.load = Load(cold_start_seconds=perf_counter() - start, **ready)

    def run(self, batch_size: int, *, since: float) -> Pass:
        """Process all texts once.

        batch_size: batch size of `nlp.pipe`, in documents.
        since: start of the measurement, by `perf_counter`.
        """
        at = perf_counter() - since
        return Pass(at=at, batch_size=batch_size, **self.send_command("run", batch_size=batch_size))

    def latencies(self, n: int) -> list[float]:
        """Time `nlp(text)` for each of `n` texts, spread evenly over all of them.

        RETURNS: seconds by text.
        """
        seconds: list[float] = self.send_command("latency", n=n)["seconds"]
        return seconds

    def score(
        self, gold: Path, predictions: Path, *, batch_size: int, limit: int = 0
    ) -> dict[str, Any]:
        """Score the pipeline with spaCy's scorer.

        gold: .spacy file of annotated documents, or a directory of them.
        predictions: .spacy file to write the predicted docs to.
        batch_size: documents per batch.
        limit: only the first N documents; 0 for all.
        RETURNS: see `worker.Measurements.score`.
        """
        return self.send_command(
            "score",
            gold=str(gold.resolve()),
            predictions=str(predictions.resolve()),
            batch_size=batch_size,
            limit=limit,
        )

    def judge(self, gold: Path, output: Path, *, batch_size: int, limit: int = 0) -> dict[str, str]:
        """Judge the predictions of the pipeline, in the current interpreter's environment.

        output: directory to write a file for each pipe to.
        RETURNS: name of each pipe to its file, see `Judged.load`. For the other arguments see
            `score`.
        """
        files: dict[str, str] = self.send_command(
            "judge",
            gold=str(gold.resolve()),
            output=str(output.resolve()),
            batch_size=batch_size,
            limit=limit,
        )["files"]
        return files

    def peak_rss_bytes(self) -> int:
        """Peak resident memory of the process so far."""
        return int(self.send_command("memory")["peak_rss_bytes"])

    def environment(self, packages: Sequence[str]) -> dict[str, Any]:
        """The versions of "python" and, in "versions", of the packages (`None` if missing)."""
        return self.send_command("environment", packages=list(packages))

    def close(self) -> None:
        """End the process, unless it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            try:
                stream.close()
            except BrokenPipeError:  # the process ended before it read a command
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

    def send_command(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a command of `worker.py` and wait for the reply."""
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
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise self._failed(**reply["error"])
        return reply

    def _failed(self, step: str, kinds: list[str], message: str, where: str) -> DistilError:
        """Turn the report of an error into one sentence. For the arguments see `worker`."""
        source = self.source
        if "DistilError" in kinds:  # has a sentence already
            return ConfigError(message)
        if step == "load":
            return ConfigError(loading_problem(source.pipeline, kinds[0], message))
        failure = f"{kinds[0]}: {one_line(message)} ({where})"
        if step == "import":
            what = f"spaCy or {source.code}" if source.code else "spaCy"
            return ConfigError(f"{source.python or sys.executable} cannot import {what}: {failure}")
        return WorkerError(f"Measuring {source.pipeline} failed: {failure}")

    def _ended(self) -> WorkerError:
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", errors="replace").splitlines()
        return WorkerError(
            f"Measuring {self.source.pipeline} failed: its process ended with code {code}"
            + (" (killed, perhaps because memory ran out)" if code == -9 else "")
            + ". Its last output:\n"
            + "\n".join(lines[-_STDERR_LINES:])
        )


def check_pin_cores(n: int | None) -> None:
    """Raise ConfigError if processes cannot be confined to that many cores."""
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
    """Make environment variables that hide GPUs and set the threads of math libraries."""
    pools = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "RAYON")
    return {
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
        "VECLIB_MAXIMUM_THREADS": str(threads),
        **{f"{pool}_NUM_THREADS": str(threads) for pool in pools},
    }
