"""Memory over a long life: many documents, many loads, one huge document.

Each part runs in a process of its own. They are forked from one that has imported everything and
run nothing, because an import takes longer than a short part.
"""

from __future__ import annotations

import gc
import multiprocessing
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime  # noqa: F401 (for the process that others are forked from)
import psutil
import spacy

from spacy_distil.export.quantize import quantize
from tests.campaigns.outcome import Deadline, Outcome
from tests.util import SENTENCES, make_nlp, write_encoder

PROMISE = (
    "Memory stays flat over n documents in memory zones, and over n / 100 loads and unloads, with "
    "torch and in int8. A document of 25 n characters takes a multiple of its size."
)
SHORT = 2_000

# Largest growth, in bytes: of a document, between the first third and the end; of a load; and of a
# character of a huge document, at the peak. A token has 5 characters, a vector 32 numbers.
PER_DOC = 100
PER_LOAD = 20_000
PER_CHARACTER = 400
# The allocator's own noise, which the slopes of short runs would count.
NOISE = 10_000_000

DOCS_PER_ZONE = 250
PIPELINES = ("torch", "int8")


def rss() -> int:
    """Memory of this process in bytes, after all garbage is gone."""
    gc.collect()
    return psutil.Process().memory_info().rss


# Parts: each returns figures, and runs in a process of its own


def stream(pipeline: str, n: int, zones: bool) -> dict[str, Any]:
    """Send n short documents, each with a word of its own, through `nlp.pipe`."""
    nlp: Any = spacy.load(pipeline)
    zone: Callable[[], AbstractContextManager] = nlp.memory_zone if zones else nullcontext

    def texts(begin: int) -> Iterator[str]:
        for i in range(begin, min(n, begin + DOCS_PER_ZONE)):
            yield f"Ann visited place{i} in the spring."

    start, third = time.monotonic(), 0
    for begin in range(0, n, DOCS_PER_ZONE):
        if begin >= n / 3 and not third:
            third = rss()
        with zone():
            for _ in nlp.pipe(texts(begin), batch_size=256):
                pass
    growth = rss() - third
    return {
        "growth": growth,
        "units": n - n / 3,
        "seconds": time.monotonic() - start,
        "strings": len(nlp.vocab.strings),
    }


def loads(pipeline: str, n: int) -> dict[str, Any]:
    """Load a pipeline, use it and let go of it, n times."""
    start, third = time.monotonic(), 0
    for i in range(n):
        if i >= n / 3 and not third:
            third = rss()
        nlp: Any = spacy.load(pipeline)
        list(nlp.pipe(["Ann visited Rome in the spring.", "We like pizza."]))
        del nlp
    return {"growth": rss() - third, "units": n - n / 3, "seconds": time.monotonic() - start}


def huge(pipeline: str, n: int) -> dict[str, Any]:
    """Run a pipeline over one document of n characters."""
    nlp: Any = spacy.load(pipeline)
    nlp.max_length = n + 1
    words = " ".join(SENTENCES).split()
    rng = random.Random(0)
    text = " ".join(rng.choice(words) for _ in range(n // 4))[:n]
    nlp(text[:20_000])  # fills buffers that stay
    forget_peak()
    before, start = rss(), time.monotonic()
    doc = nlp(text)
    assert doc.tensor.shape[0] == len(doc) > n / 10
    return {
        "growth": peak() - before,
        "units": n,
        "seconds": time.monotonic() - start,
        "tokens": len(doc),
    }


def forget_peak() -> None:
    """Let `peak` begin anew: loading a pipeline may have taken more than a document does."""
    with suppress(OSError):  # not on Linux, or not allowed there
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Highest memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if not status.exists():  # not on Linux
        return rss()
    # The figure of getrusage counts what this process was before it was forked.
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
    return int(kilobytes) * 1024


# The campaign


def write_pipelines(directory: Path) -> None:
    """Write a small pipeline for torch, the same in int8, and one without components."""
    encoder = write_encoder(directory / "encoder", "distilbert", positions=512, width=64)
    make_nlp(encoder, ["tagger"]).to_disk(directory / "torch")
    quantize(directory / "torch", directory / "int8", min_agreement=0.0)
    spacy.blank("en").to_disk(directory / "blank")


def run(n: int, seed: int, deadline: Deadline) -> Outcome:
    """Measure each part, see `PROMISE`. The texts are the same for every seed."""
    outcome = Outcome()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        with context.Pool(1) as pool:
            return pool.apply(function, arguments)

    def measure(title: str, bound: float, part: Callable[..., Any], *arguments: Any) -> float:
        """Run a part. RETURNS: the bytes that it grew by for each unit."""
        if deadline.passed():
            return 0.0
        figures = call(part, *arguments)
        size = arguments[1]
        grown = max(0, figures["growth"] - NOISE) / figures["units"]
        outcome.figures[title] = (
            f"{size:,} in {figures['seconds']:.0f} s, {figures['growth'] / 1e6:+.1f} MB"
        )
        outcome.cases += size
        if grown > bound:
            call_again = f"{part.__name__}{arguments}"
            outcome.failures.append(f"{title}: {call_again} {figures}, expected {bound} a unit")
        return grown

    with TemporaryDirectory() as directory:
        call(write_pipelines, Path(directory))
        blank = f"{directory}/blank"
        for name in PIPELINES:
            path = f"{directory}/{name}"
            measure(f"{name}: documents in zones", PER_DOC, stream, path, n, True)
            measure(f"{name}: loads", PER_LOAD, loads, path, max(6, n // 100))
            measure(f"{name}: characters", PER_CHARACTER, huge, path, 25 * n)
        # Without zones spaCy keeps every new word, whatever the pipeline does.
        own = measure("spaCy alone: documents without zones", float("inf"), stream, blank, n, False)
        title = "int8: documents without zones"
        measure(title, own * 1.1 + PER_DOC, stream, path, n, False)
    return outcome
