"""Child processes that do one piece of work each, and may be killed while they do so.

They are forked from a server that has imported everything, see `tests.warm`, so that a child starts in
milliseconds.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.kills import FileOperations

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The server and its children inherit these.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYTHONHASHSEED", "0")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.warm", "tests.tiny_runs"])

# Arguments first, so that it can be pickled: a function of a module, and what it gets.
Work = tuple[Callable[..., Any], tuple[Any, ...]]


@dataclass(frozen=True)
class Measure:
    """What a piece of work does if nobody kills it.

    operations: number of its file operations, see `FileOperations`.
    seconds: from the first of them to the end.
    result: of the function.
    """

    operations: int
    seconds: float
    result: Any


def run(work: Work, *, counted: Path | None = None, first: str = "") -> Measure:
    """Run a piece of work in a child to its end.

    counted, first: `directory` and `first` of `FileOperations`. None counts nothing.
    Raises ChildError if it fails.
    """
    with _child(work, counted, first, 0) as (process, pipe):
        while True:
            try:
                message = pipe.recv()
            except EOFError:
                process.join()
                raise ChildError(f"the child ended with {process.exitcode}") from None
            if isinstance(message, Measure):
                return message
            if message != "first":
                raise ChildError(message)


def run_and_kill(
    work: Work, measure: Measure, rng: random.Random, *, counted: Path, first: str = ""
) -> tuple[str, bool]:
    """Run a piece of work in a child, and kill it: before one of its file operations, or at any
    moment after the first.

    measure: of the same work without a kill.
    RETURNS: the moment in words, and whether the child was killed before it ended.
    Raises ChildError if it fails before that.
    """
    by_operation = rng.random() < 0.5
    kill_at = rng.randint(1, measure.operations) if by_operation else 0
    delay = rng.uniform(0.0, measure.seconds)
    moment = f"operation {kill_at} of {measure.operations}" if kill_at else f"{delay:.3f} s"
    with _child(work, counted, first, kill_at) as (process, pipe):
        try:
            message = pipe.recv()
            if message == "first" and not by_operation:
                if not pipe.poll(delay):
                    process.kill()
                message = pipe.recv()
            elif message == "first":
                message = pipe.recv()
        except EOFError:
            process.join()
            return moment, True
        if not isinstance(message, Measure):
            raise ChildError(f"killed at {moment}: {message}")
        return moment, False


class ChildError(Exception):
    """A child failed, with its traceback."""


@contextmanager
def _child(
    work: Work, counted: Path | None, first: str, kill_at: int
) -> Iterator[tuple[Any, Connection]]:
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_do, args=(there, work, counted, first, kill_at))
    process.start()
    there.close()
    try:
        yield process, here
    finally:
        process.join(0.0 if process.exitcode is not None else 10.0)
        process.kill()
        process.join()
        here.close()


def _do(pipe: Connection, work: Work, counted: Path | None, first: str, kill_at: int) -> None:
    """Do the work in the child. Sends "first" at the first operation, and a `Measure` at the end,
    or the traceback.
    """
    began = [time.monotonic()]

    def begin() -> None:
        began[0] = time.monotonic()
        pipe.send("first")

    log = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    operations = None
    try:
        import torch

        torch.set_num_threads(1)
        if counted is not None:
            operations = FileOperations(counted, kill_at=kill_at, first=first, on_first=begin)
        function, arguments = work
        result = function(*arguments)
        count = operations.count if operations is not None else 0
        pipe.send(Measure(count, time.monotonic() - began[0], result))
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
