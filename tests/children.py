"""Child processes that do one piece of work each, and may be killed while they do so.

They are forked from a server that has imported everything, see `tests.warm`, so that a child
starts in milliseconds.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.kills import Counting, FileOperations

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The server and its children inherit these.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYTHONHASHSEED", "0")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.warm", "tests.tiny_runs"])

# A function of a module, which can be pickled, and its arguments.
Work = tuple[Callable[..., Any], tuple[Any, ...]]


@dataclass(frozen=True)
class Measure:
    """A piece of work that came to its end.

    operations: number of its file operations that count.
    seconds: from the first of them to the end.
    result: of the function.
    """

    operations: int
    seconds: float
    result: Any


class ChildError(Exception):
    """A child failed, with its traceback."""


def run(work: Work, counting: Counting | None = None) -> Measure:
    """Run a piece of work in a child to its end. Raises ChildError if it has none."""
    measure = run_and_kill(work, counting)
    if measure is None:
        raise ChildError("the child was killed")
    return measure


def run_and_kill(
    work: Work, counting: Counting | None, delay: float | None = None
) -> Measure | None:
    """Run a piece of work in a child that may be killed.

    counting: may say before which operation. None counts nothing.
    delay: seconds after the first operation that counts, at which it is killed; None for never.
    RETURNS: None if it was killed.
    Raises ChildError if it fails.
    """
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_do, args=(there, work, counting))
    process.start()
    there.close()
    try:
        message = here.recv()
        if message == "first":
            if delay is not None and not here.poll(delay):
                process.kill()
            message = here.recv()
    except EOFError:
        message = None
    process.join()
    here.close()
    if message is None and process.exitcode == -signal.SIGKILL:
        return None
    if not isinstance(message, Measure):
        raise ChildError(message or f"the child ended with {process.exitcode}")
    return message


def kill_somewhere(
    work: Work, measure: Measure, rng: random.Random, counting: Counting
) -> tuple[str, bool]:
    """Run a piece of work in a child, and kill it: before one of its file operations, or at any
    moment after the first.

    measure: of the same work without a kill.
    RETURNS: the moment in words, and whether the child was killed before it ended.
    Raises ChildError if it fails before that.
    """
    kill_at, delay = rng.randint(1, measure.operations), rng.uniform(0.0, measure.seconds)
    if rng.random() < 0.5:
        moment = f"operation {kill_at} of {measure.operations}"
        return moment, run_and_kill(work, replace(counting, kill_at=kill_at)) is None
    return f"{delay:.3f} s", run_and_kill(work, counting, delay) is None


def _do(pipe: Connection, work: Work, counting: Counting | None) -> None:
    """Do the work in the child. Sends "first" at the first operation, and a `Measure` at the end,
    or the traceback.
    """
    began = time.monotonic()

    def begin() -> None:
        nonlocal began
        began = time.monotonic()
        pipe.send("first")

    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    try:
        import torch

        torch.set_num_threads(1)
        operations = None if counting is None else FileOperations(counting, begin)
        function, arguments = work
        result = function(*arguments)
        count = 0 if operations is None else operations.count
        pipe.send(Measure(count, time.monotonic() - began, result))
    except BaseException:
        pipe.send(traceback.format_exc())


@contextmanager
def workplace() -> Iterator[Path]:
    """A directory of its own, for a campaign."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as directory:
        yield Path(directory).resolve()


def digests(directory: Path, *, leave_out: tuple[str, ...] = ()) -> dict[str, str]:
    """Digests of all files under a directory, by their paths in it. Empty if there is none.

    leave_out: names of files and directories.
    """
    found = {}
    for path in sorted(directory.rglob("*")):
        inside = path.relative_to(directory)
        if path.is_file() and not set(inside.parts) & set(leave_out):
            found[str(inside)] = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return found


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Names of the files that differ or are missing."""
    return sorted(name for name in {**found, **expected} if found.get(name) != expected.get(name))
