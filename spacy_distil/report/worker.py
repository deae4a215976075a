"""`python worker.py PIPELINE TEXTS`: measure one pipeline in a process of its own.

This script needs nothing but spaCy, so any interpreter with spaCy can run it, even without
spacy-distil. It loads the pipeline, processes a short first doc and prints one line of JSON about
that. Then it reads commands, each a line of JSON on standard input, and replies to each with one
line of JSON on standard output, until the input ends:

    {"do": "run", "batch_size": 256}            {"words", "seconds"} of `nlp.pipe` over the texts
    {"do": "latency", "n": 100}                 {"seconds": [...]} of `nlp(text)`, by text
    {"do": "score", "gold": PATH, "batch_size": 256,
     "limit": 0, "predictions": PATH}           {"scores", "categories"}, see `Measurements.score`
    {"do": "memory"}                            {"peak_rss_bytes"} of the process so far
    {"do": "environment", "packages": [...]}    {"python", "versions"}

If something fails, the last line is {"error": {"step", "kinds", "message", "where"}}: "import",
"load" or "measure"; the names of the error's class and its bases; and the file and line that
raised it.

TEXTS is a file with a JSON list of strings. `spacy_distil.report.process` sends the commands.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

# The same for every pipeline, whatever the test set.
FIRST_DOC = "A pipeline is loaded once, and then it reads whatever comes its way."


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pipeline")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pin-cores", type=int, default=0)
    parser.add_argument("--code", type=Path, default=None)
    args = parser.parse_args(argv)
    if args.pin_cores:
        # Before the import of libraries that count the cores.
        pin(args.pin_cores)
    # Replies have standard output to themselves: prints of libraries go to standard error.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as output:
        os.dup2(2, 1)

        def reply(message: dict[str, Any]) -> None:
            output.write(json.dumps(message, default=float) + "\n")
            output.flush()

        with reporting("import", reply):
            import spacy

            if args.code is not None:
                spacy.util.import_file("python_code", args.code)
        with reporting("load", reply):
            start = perf_counter()
            nlp = spacy.load(args.pipeline)
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(args.threads)
            loaded = perf_counter()
        with reporting("measure", reply):
            nlp(FIRST_DOC)
            done = perf_counter()
            reply(
                {
                    "load_seconds": loaded - start,
                    "first_doc_seconds": done - loaded,
                    "path": str(nlp.path),
                }
            )
            measurements = Measurements(nlp, args.texts)
            for line in sys.stdin:
                command = json.loads(line)
                reply(measurements.find(command.pop("do"))(**command))


@contextmanager
def reporting(step: str, reply: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Report an error, and raise it. step: what the block does."""
    try:
        yield
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reply(
            {
                "error": {
                    "step": step,
                    "kinds": [kind.__name__ for kind in type(error).__mro__],
                    "message": str(error),
                    "where": f"{frame.filename}, line {frame.lineno}",
                }
            }
        )
        raise


class Measurements:
    """Measures a loaded pipeline: one method for each command."""

    def __init__(self, nlp: Any, texts: Path) -> None:
        """nlp: a spaCy `Language`. texts: file with a JSON list of strings, read on first use."""
        self.nlp = nlp
        self._file = texts
        self._texts: list[str] | None = None

    @property
    def texts(self) -> list[str]:
        # Not at the start, which is timed.
        if self._texts is None:
            self._texts = json.loads(self._file.read_text(encoding="utf-8"))
        return self._texts

    def find(self, command: str) -> Callable[..., dict[str, Any]]:
        """Find the method of a command."""
        commands: dict[str, Callable[..., dict[str, Any]]] = {
            "run": self.run,
            "latency": self.latency,
            "score": self.score,
            "judge": self.judge,
            "memory": self.memory,
            "environment": self.environment,
        }
        if command not in commands:
            raise ValueError(f"Unknown command {command!r}: expected one of {', '.join(commands)}.")
        return commands[command]

    def run(self, batch_size: int) -> dict[str, Any]:
        """Process all texts once. batch_size: documents per batch."""
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

    def score(self, gold: str, batch_size: int, limit: int, predictions: str) -> dict[str, Any]:
        """Score the pipeline with spaCy's scorer.

        gold: .spacy file of annotated documents, or a directory of them.
        limit: only the first N documents; 0 for all.
        predictions: .spacy file to write the predicted docs to.
        RETURNS: "scores", and "categories" as by `find_categories`.
        """
        from spacy.training import Corpus

        examples = list(Corpus(gold, limit=limit)(self.nlp))
        scores, examples = evaluate(self.nlp, examples, batch_size=batch_size)
        collect_predictions(examples).to_disk(predictions)
        return {"scores": scores, "categories": find_categories(self.nlp)}

    def judge(self, gold: str, output: str, batch_size: int, limit: int) -> dict[str, Any]:
        """Judge the predictions of pipes that have probabilities.

        output: directory to write a file for each pipe to. For the other arguments see `score`.
        RETURNS: "files": name of a pipe to its file.
        """
        # Other environments may lack this package, or have another version.
        from spacy.training import Corpus

        from spacy_distil.report.reliability.collecting import judge

        files = {}
        examples = Corpus(gold, limit=limit)(self.nlp)
        for i, (name, judged) in enumerate(judge(self.nlp, examples, batch_size).items()):
            files[name] = str(Path(output) / f"{i}.npz")
            judged.save(Path(files[name]))
        return {"files": files}

    def memory(self) -> dict[str, Any]:
        """Peak memory so far."""
        return {"peak_rss_bytes": peak_rss()}

    def environment(self, packages: list[str]) -> dict[str, Any]:
        """Versions of Python and of packages (`None` if missing)."""
        versions: dict[str, str | None] = {}
        for package in packages:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                versions[package] = None
        return {"python": platform.python_version(), "versions": versions}


def evaluate(
    nlp: Any, examples: Sequence[Any], *, batch_size: int
) -> tuple[dict[str, Any], list[Any]]:
    """Run `nlp.evaluate`. RETURNS: its scores, and the examples with the predictions."""
    from spacy.scorer import Scorer

    class KeepingScorer(Scorer):
        examples: list[Any]

        def score(self, examples: Any, *, per_component: bool = False) -> dict[str, Any]:
            self.examples = list(examples)
            return super().score(self.examples, per_component=per_component)

    scorer = KeepingScorer(nlp)
    scores = nlp.evaluate(examples, scorer=scorer, batch_size=batch_size)
    return scores, scorer.examples


def collect_predictions(examples: Iterable[Any]) -> Any:
    """Collect the predicted docs of examples, with what tables and pages show, in a `DocBin`."""
    from spacy.tokens import DocBin

    return DocBin(
        attrs=["TAG", "POS", "ENT_IOB", "ENT_TYPE"], docs=[each.predicted for each in examples]
    )


def find_categories(nlp: Any) -> dict[str, Any] | None:
    """Describe the categories that spaCy scores: the last text categorizer's.

    RETURNS: the "labels", and the "threshold" as by `category_threshold`; `None` without
        categories.
    """
    from spacy.pipeline import TextCategorizer

    textcats = [pipe for _, pipe in nlp.pipeline if isinstance(pipe, TextCategorizer)]
    if not textcats or not textcats[-1].labels:
        return None
    return {
        "labels": sorted(textcats[-1].labels),
        "threshold": category_threshold(textcats[-1]),
    }


def category_threshold(pipe: Any) -> float | None:
    """The score from which a pipe assigns a category; `None` if its categories are exclusive."""
    from spacy.pipeline import MultiLabel_TextCategorizer

    if not isinstance(pipe, MultiLabel_TextCategorizer):
        return None
    threshold = pipe.cfg.get("threshold")
    return 0.5 if threshold is None else float(threshold)


def pin(n_cores: int) -> None:
    """Confine this process to the first N of the cores that it may run on. Only on Linux."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n_cores])


def peak_rss() -> int:
    """Peak resident memory of this process so far, in bytes.

    On Linux, ru_maxrss of getrusage survives exec: a small process would report the peak of its
    parent. The number is therefore read from /proc.
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
    # Find modules from the working directory, as `python -m` does, and not beside this file.
    if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
        sys.path[0] = os.getcwd()
    main()
