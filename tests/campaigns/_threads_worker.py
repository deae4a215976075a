"""The process of the campaign `threads`: runs cases on one pipeline, and prints a line for each.

    python -m tests.campaigns._threads_worker PIPELINE SEED CASES

A line is `[case, null]`, or `[case, "what was wrong"]`. It goes on when it reads "go".
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import spacy

from spacy_distil.component.shim import get_encoder
from tests.util import random_text

ENGINES = ("torch", "onnx")
N_THREADS = 8
TIMEOUT = 120  # seconds, after which a case counts as hanging
# A spawned process imports everything again. So few cases spawn: of 40, those after one of each
# other kind.
SPAWNS_EVERY = 40

Facts = tuple[Any, ...]


def kind_of(case: int) -> str:
    """The kind of a case, a name in KINDS."""
    turn = case // len(ENGINES)
    if turn % (SPAWNS_EVERY // len(ENGINES)) == len(KINDS):
        return "spawn"
    return list(KINDS)[turn % len(KINDS)]


def engine_of(case: int) -> str:
    """The engine of a case."""
    return ENGINES[case % len(ENGINES)]


class Case:
    """A pipeline, and the texts of a case. Some of their words are new to the vocabulary."""

    def __init__(self, nlp: Any, rng: random.Random) -> None:
        self.nlp, self.rng = nlp, rng
        self.exact = get_encoder(nlp.get_pipe("transformer").model).settings.engine == "onnx"
        self.texts = [self._text() for _ in range(24)]
        self.batch_size = rng.choice([2, 3, 5])
        self.found: list[tuple[str, Facts]] = []  # texts with results
        self.vectors: list[list[np.ndarray]] = []  # of all texts
        self.errors: list[str] = []

    def _text(self) -> str:
        words = random_text(self.rng, self.rng.choice([0, 1, 4, 12, 40]))
        return f"{words} Xylo{self.rng.randrange(10**6)}" if self.rng.random() < 0.7 else words

    def pipe(self, texts: Sequence[str] | None = None, **settings: Any) -> Iterator[Any]:
        return self.nlp.pipe(texts or self.texts, batch_size=self.batch_size, **settings)

    def note(self, docs: Any, texts: Sequence[str] | None = None) -> None:
        """Keep the results for texts."""
        texts = self.texts if texts is None else texts
        found = [facts(doc) for doc in docs]
        if len(found) != len(texts):
            self.errors.append(f"{len(found)} docs for {len(texts)} texts")
        self.found += zip(texts, found, strict=False)

    def work(self, seed: float) -> None:
        """Do something in a thread."""
        rng = random.Random(seed)
        try:
            for _ in range(3):
                kind = rng.randrange(4)
                if kind == 0:
                    text = rng.choice(self.texts)
                    self.note([self.nlp(text)], [text])
                elif kind == 1:
                    self.note(self.pipe())
                elif kind == 2:
                    abandon(self.pipe(), rng)
                else:
                    n = rng.randrange(1, len(self.texts))
                    stream = self.pipe()
                    self.note((next(stream) for _ in range(n)), self.texts[:n])
        except Exception as error:
            self.errors.append(repr(error))

    def encode(self, seed: float) -> None:
        """Run the encoder alone in a thread."""
        encoder, rng = self.nlp.get_pipe("transformer"), random.Random(seed)
        try:
            for _ in range(6):
                docs = map(self.nlp.make_doc, self.texts)
                size = rng.choice([1, 3, 8])
                self.vectors.append([doc.tensor for doc in encoder.pipe(docs, batch_size=size)])
        except Exception as error:
            self.errors.append(repr(error))

    @contextlib.contextmanager
    def busy(self, n_threads: int, work: Callable[[float], None] | None = None) -> Iterator[None]:
        """Let threads work meanwhile."""
        threads = [
            threading.Thread(target=work or self.work, args=(self.rng.random(),))
            for _ in range(n_threads)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for thread in threads:
                thread.join()

    def check(self) -> str | None:
        """Compare all results with those of one thread. RETURNS: what was wrong, or None."""
        expected = {text: facts(self.nlp(text)) for text in dict.fromkeys(self.texts)}
        for text, result in self.found:
            if not same(result, expected[text], self.exact):
                self.errors.append(f"another result for {text[:50]!r}")
        for vectors in self.vectors:
            for text, found in zip(self.texts, vectors, strict=True):
                if not same_array(found, expected[text][-1], self.exact):
                    self.errors.append(f"other vectors for {text[:50]!r}")
        return "; ".join(dict.fromkeys(self.errors)) or None


def facts(doc: Any) -> Facts:
    # The classes that spaCy gives an empty doc depend on whether its batch has other docs.
    labels = sorted(doc.cats) if len(doc) else []
    return (
        [(token.text, token.tag_, token.ent_iob_, token.ent_type_) for token in doc],
        labels,
        np.array([doc.cats[label] for label in labels]),
        doc.tensor.copy(),
    )


def same(left: Facts, right: Facts, exact: bool) -> bool:
    """Compare results: to the last bit, or but for rounding."""
    return left[:2] == right[:2] and all(
        same_array(a, b, exact) for a, b in zip(left[2:], right[2:], strict=True)
    )


def same_array(left: np.ndarray, right: np.ndarray, exact: bool) -> bool:
    tolerance = 0 if exact else 1e-4
    return left.shape == right.shape and np.allclose(left, right, rtol=0, atol=tolerance)


class Cycle:
    """Holds a stream until the garbage collector comes, in whichever thread."""

    def __init__(self, stream: Iterator[Any]) -> None:
        self.stream = stream
        self.itself = self


def abandon(stream: Iterator[Any], rng: random.Random) -> None:
    """Read some docs, and leave the rest to the garbage collector."""
    cycle = Cycle(stream)
    for _ in range(rng.randrange(6)):
        next(cycle.stream)


def fork(function: Callable[[], bool]) -> int:
    """Run a function in a forked child, whose exit code is 0 if the result is true."""
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        signal.alarm(TIMEOUT // 2)  # not faulthandler, whose thread the child does not have
        code = 0 if function() else 2
    finally:
        sys.stderr.flush()
        os._exit(code)


def join(case: Case, child: int) -> None:
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        case.errors.append(f"a forked child ended with {code} (2: another result, -14: hanging)")


# Kinds of cases
#
# While a process is forked, its other threads run the encoder alone. spaCy's pipes multiply
# matrices with BLIS, which has a lock: a child that is forked while another thread holds it waits
# for it forever, with any pipeline of spaCy.


def threads(case: Case) -> None:
    """Threads predict at once, and drop streams."""
    with case.busy(N_THREADS):
        pass


def fork_directly(case: Case) -> None:
    """A child is forked while threads encode, and predicts."""
    case.texts = case.texts[:8]
    expected = [facts(doc) for doc in case.pipe()]

    def predict() -> bool:
        found = [facts(doc) for doc in case.pipe()]
        return all(same(a, b, case.exact) for a, b in zip(found, expected, strict=True))

    with case.busy(4, case.encode):
        for _ in range(3):
            time.sleep(case.rng.random() * 0.02)
            join(case, fork(predict))


def fork_by_n_process(case: Case) -> None:
    """`n_process` forks while threads encode."""
    multiprocessing.set_start_method("fork", force=True)
    with case.busy(4, case.encode):
        case.note(case.pipe(n_process=2))


def spawn(case: Case) -> None:
    """`n_process` spawns while threads predict. The pipeline is pickled meanwhile."""
    multiprocessing.set_start_method("spawn", force=True)
    with case.busy(4):
        case.note(case.pipe(n_process=2))


def tasks(case: Case) -> None:
    """Tasks of asyncio predict in threads, and read one stream in turn."""

    async def read(stream: Iterator[Any]) -> None:
        docs = [await asyncio.to_thread(next, stream) for _ in case.texts]
        case.note(docs)

    async def predict(text: str) -> None:
        case.note([await asyncio.to_thread(case.nlp, text)], [text])

    async def main() -> None:
        await asyncio.gather(*map(predict, case.texts), read(case.pipe()), read(case.pipe()))

    asyncio.run(main())


def dropped(case: Case) -> None:
    """Streams in cycles are dropped. Whichever thread collects garbage closes them."""
    for _ in range(10):
        abandon(case.pipe(), case.rng)
    with case.busy(2):
        gc.collect()
    case.note(case.pipe())


def closed_elsewhere(case: Case) -> None:
    """Suspended streams are closed in other threads."""
    streams = [case.pipe() for _ in range(10)]
    for stream in streams:
        for _ in range(case.rng.randrange(1, 6)):
            next(stream)
    with ThreadPoolExecutor(N_THREADS) as pool, case.busy(2):
        for _ in pool.map(lambda stream: stream.close(), streams):  # type: ignore[attr-defined]
            pass


def continued_elsewhere(case: Case) -> None:
    """A suspended stream goes on in another thread."""
    stream = case.pipe()
    docs = [next(stream) for _ in range(case.rng.randrange(1, 12))]
    with ThreadPoolExecutor(1) as pool, case.busy(2):
        docs += pool.submit(list, stream).result()
    case.note(docs)


def continued_in_a_child(case: Case) -> None:
    """A suspended stream goes on in a forked child, and in its parent, too."""
    expected = [facts(doc) for doc in case.pipe()]
    stream = case.pipe()
    n = case.rng.randrange(1, 12)
    docs = [next(stream) for _ in range(n)]

    def go_on() -> bool:
        found = [facts(doc) for doc in stream]
        return all(same(a, b, case.exact) for a, b in zip(found, expected[n:], strict=True))

    join(case, fork(go_on))
    case.note([*docs, *stream])


KINDS: dict[str, Callable[[Case], None]] = {
    "threads": threads,
    "fork": fork_directly,
    "n_process": fork_by_n_process,
    "asyncio": tasks,
    "dropped": dropped,
    "closed": closed_elsewhere,
    "continued": continued_elsewhere,
    "continued in a child": continued_in_a_child,
}
ALL_KINDS = {**KINDS, "spawn": spawn}


def run_case(nlp: Any, seed: int, case: int) -> str | None:
    """RETURNS: what was wrong, or None."""
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)
    own = Case(nlp, random.Random(f"{seed} {case}"))
    with printed() as output:
        try:
            ALL_KINDS[kind_of(case)](own)
        except Exception as error:
            own.errors.append(repr(error))
        gc.collect()
        nlp.get_pipe("transformer")._ahead.wait()
        failure = own.check()
    if output:
        failure = f"{failure or 'right'}, but printed: {output[0]}"
    faulthandler.cancel_dump_traceback_later()
    return failure


@contextlib.contextmanager
def printed() -> Iterator[list[str]]:
    """Gather what this process and its children write to stderr. YIELDS: a list for it."""
    output: list[str] = []
    before = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield output
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            if text := file.read().decode(errors="replace"):
                output.append(text)


def main() -> None:
    path, seed, cases = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    nlp = spacy.load(path)
    # Collect garbage often, so that each thread does.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50, 2, 2)
    for case in cases:
        print(json.dumps([case, run_case(nlp, seed, case)]), flush=True)
        if sys.stdin.readline().strip() != "go":
            break


if __name__ == "__main__":
    main()
