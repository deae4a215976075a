"""`python worker.py PIPELINE TEXTS`: one pipeline, measured in a process of its own.

A script that needs spaCy alone, so that any interpreter with spaCy in it can run it, one without
spacy-distil too. It loads the pipeline, processes a first short doc and prints one line of JSON
about that; then it answers each command, a line of JSON on standard input, with one line of JSON on
standard output, until input ends:

    {"do": "run", "batch_size": 256}            {"words", "seconds"} of `nlp.pipe` over the texts
    {"do": "latency", "n": 100}                 {"seconds": [...]} of `nlp(text)`, by text
    {"do": "score", "gold": PATH,
     "batch_size": 256, "limit": 0}             {"scores"} of `nlp.evaluate`
    {"do": "memory"}                            {"peak_rss_bytes"} of the process so far
    {"do": "environment", "packages": [...]}    {"python", "versions"}

TEXTS is a file with a JSON list of strings. `spacy_distil.report.process` is the other end.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

# The same for every pipeline, so that the first doc does not depend on the test set.
FIRST_DOC = "A pipeline is loaded once, and then it reads whatever comes its way."


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pipeline")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pin-cores", type=int, default=0)
    args = parser.parse_args(argv)
    if args.pin_cores:
        # Before the libraries that count the cores are imported.
        pin(args.pin_cores)
    # Answers have standard output to themselves: what libraries print there goes to stderr.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)

        def answer(message: dict[str, Any]) -> None:
            answers.write(json.dumps(message, default=float) + "\n")
            answers.flush()

        import spacy

        start = perf_counter()
        nlp = spacy.load(args.pipeline)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(args.threads)
        loaded = perf_counter()
        nlp(FIRST_DOC)
        done = perf_counter()
        answer(
            {
                "load_seconds": loaded - start,
                "first_doc_seconds": done - loaded,
                "path": str(nlp.path),
            }
        )
        measurements = Measurements(nlp, args.texts)
        for line in sys.stdin:
            command = json.loads(line)
            answer(measurements.find(command.pop("do"))(**command))


class Measurements:
    """What can be asked of a loaded pipeline: one method for each command."""

    def __init__(self, nlp: Any, texts: Path) -> None:
        """nlp: a spaCy `Language`. texts: file with a JSON list of strings, read when needed."""
        self.nlp = nlp
        self._file = texts
        self._texts: list[str] | None = None

    @property
    def texts(self) -> list[str]:
        # A cold start would pay for reading them.
        if self._texts is None:
            self._texts = json.loads(self._file.read_text(encoding="utf-8"))
        return self._texts

    def find(self, command: str) -> Callable[..., dict[str, Any]]:
        """The method of that name."""
        commands: dict[str, Callable[..., dict[str, Any]]] = {
            "run": self.run,
            "latency": self.latency,
            "score": self.score,
            "memory": self.memory,
            "environment": self.environment,
        }
        if command not in commands:
            raise ValueError(f"Unknown command {command!r}: expected one of {', '.join(commands)}.")
        return commands[command]

    def run(self, batch_size: int) -> dict[str, Any]:
        """Process all texts once. batch_size: in documents."""
        texts = self.texts
        gc.collect()
        start = perf_counter()
        words = sum(len(doc) for doc in self.nlp.pipe(texts, batch_size=batch_size))
        return {"words": words, "seconds": perf_counter() - start}

    def latency(self, n: int) -> dict[str, Any]:
        """Process `n` texts one at a time, spread evenly over all of them."""
        texts = [self.texts[i * len(self.texts) // n] for i in range(n)]
        gc.collect()
        seconds = []
        for text in texts:
            start = perf_counter()
            self.nlp(text)
            seconds.append(perf_counter() - start)
        return {"seconds": seconds}

    def score(self, gold: str, batch_size: int, limit: int) -> dict[str, Any]:
        """spaCy's scores on annotated documents.

        gold: a .spacy file, or a directory of them. limit: the first N; 0 for all.
        """
        from spacy.training import Corpus

        examples = list(Corpus(gold, limit=limit)(self.nlp))
        return {"scores": self.nlp.evaluate(examples, batch_size=batch_size)}

    def memory(self) -> dict[str, Any]:
        return {"peak_rss_bytes": peak_rss()}

    def environment(self, packages: list[str]) -> dict[str, Any]:
        """Versions; `None` for a package that is not installed."""
        versions: dict[str, str | None] = {}
        for package in packages:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                versions[package] = None
        return {"python": platform.python_version(), "versions": versions}


def pin(n_cores: int) -> None:
    """Confine this process to the first of the cores that it may run on. On Linux."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n_cores])


def peak_rss() -> int:
    """Most resident memory of this process so far, in bytes.

    On Linux not from getrusage: its ru_maxrss survives exec, and would give a small process the
    peak of the one that started it.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    # As `python -m` has it: modules are found from the working directory, not beside this file.
    if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
        sys.path[0] = os.getcwd()
    main()
