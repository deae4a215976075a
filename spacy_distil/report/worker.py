"""`python -m spacy_distil.report.worker PIPELINE TEXTS`: one pipeline, timed in its own process.

Loads the pipeline and processes a first short doc, prints one line of JSON about it, and then
answers every line on standard input with one line of JSON on standard output, until input ends:

    run      {"words", "seconds"} of `nlp.pipe` over the texts
    memory   {"peak_rss_bytes"}, the most memory that the process has held so far

TEXTS is a JSON list of strings. `spacy_distil.report.speed` is the other end.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

# The same for every pipeline, so that the first doc does not depend on the test set.
FIRST_DOC = "A pipeline is loaded once, and then it reads whatever comes its way."


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pipeline")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    # Answers have standard output to themselves: what libraries print there goes to stderr.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)

        def answer(message: dict[str, Any]) -> None:
            answers.write(json.dumps(message) + "\n")
            answers.flush()

        import spacy

        start = perf_counter()
        nlp = spacy.load(args.pipeline)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(args.threads)
        loaded = perf_counter()
        nlp(FIRST_DOC)
        done = perf_counter()
        answer({"load_seconds": loaded - start, "first_doc_seconds": done - loaded})
        texts: list[str] | None = None
        for command in map(str.strip, sys.stdin):
            if command == "run":
                if texts is None:
                    texts = json.loads(args.texts.read_text(encoding="utf-8"))
                gc.collect()
                start = perf_counter()
                words = sum(len(doc) for doc in nlp.pipe(texts, batch_size=args.batch_size))
                answer({"words": words, "seconds": perf_counter() - start})
            elif command == "memory":
                answer({"peak_rss_bytes": peak_rss()})
            else:
                raise ValueError(f"Unknown command {command!r}: expected 'run' or 'memory'.")


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
    main()
