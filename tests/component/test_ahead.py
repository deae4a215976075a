"""Streams that work ahead: suspended, dropped, closed by others, forked."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from spacy_distil.component.ahead import Ahead

WAIT = 10  # seconds for what takes none


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Python would print, because no caller can catch it."""
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    monkeypatch.setattr(threading, "excepthook", seen.append)
    return seen


class Cycle:
    """Holds a stream until the garbage collector comes."""

    def __init__(self, stream: Iterator[Any]) -> None:
        self.stream = stream
        self.itself = self


def test_results_come_in_order_one_ahead() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for i in range(4):
            read.append(i)
            yield i

    found = []
    for item, result in Ahead().map(lambda i: i * i, items()):
        assert read == list(range(min(item + 2, 4)))
        found.append((item, result()))
    assert found == [(0, 0), (1, 1), (2, 4), (3, 9)]


def test_an_error_belongs_to_its_item() -> None:
    found = []
    for item, result in Ahead().map(lambda i: 6 // i, iter([3, 0, 2])):
        try:
            found.append(result())
        except ZeroDivisionError:
            found.append(item)
    assert found == [2, 0, 3]


def test_the_garbage_collector_closes_a_stream_in_its_own_thread(unraisable: list[Any]) -> None:
    ahead, dropped, collected = Ahead(), threading.Event(), threading.Event()

    def work(item: int) -> int:
        if item == 1:
            assert dropped.wait(WAIT)
            gc.collect()
            collected.set()
        return item

    gc.collect()
    gc.disable()
    try:
        cycle = Cycle(ahead.map(work, iter(range(9))))
        stream = weakref.ref(cycle.stream)
        assert next(cycle.stream)[0] == 0
        del cycle
        dropped.set()
        assert collected.wait(WAIT)
    finally:
        gc.enable()
    assert stream() is None
    ahead.wait()
    assert not unraisable


def test_a_stream_is_closed_without_waiting_for_its_thread() -> None:
    """Who closes it may hold a lock that the thread needs."""
    lock, begun, done = threading.Lock(), threading.Event(), []

    def work(item: int) -> None:
        begun.set()
        with lock:
            done.append(item)

    ahead = Ahead()
    with lock:
        stream = ahead.map(work, iter(range(9)))
        next(stream)
        assert begun.wait(WAIT)
        stream.close()  # type: ignore[attr-defined]
        assert not done
    ahead.wait()
    assert done == [0]  # what has not begun is left out


def test_waiting_ends_when_a_stream_is_closed_meanwhile() -> None:
    ahead, go_on = Ahead(), threading.Event()
    stream = ahead.map(lambda _: go_on.wait(WAIT), iter(range(9)))
    next(stream)  # one is in work, one waits
    waiter = threading.Thread(target=ahead.wait)
    waiter.start()
    stream.close()  # type: ignore[attr-defined]
    assert waiter.is_alive()
    go_on.set()
    waiter.join(WAIT)
    assert not waiter.is_alive()


def test_a_stream_goes_on_in_another_thread() -> None:
    stream = Ahead().map(lambda i: i + 1, iter(range(5)))
    found = [next(stream)[1]()]
    thread = threading.Thread(target=lambda: found.extend(result() for _, result in stream))
    thread.start()
    thread.join(WAIT)
    assert found == [1, 2, 3, 4, 5]


def test_it_is_copied_while_a_thread_works() -> None:
    ahead, go_on = Ahead(), threading.Event()
    stream = ahead.map(lambda _: go_on.wait(WAIT), iter(range(9)))
    next(stream)
    for other in (copy.deepcopy(ahead), pickle.loads(pickle.dumps(ahead))):
        other.wait()  # for nothing
        assert [result() for _, result in other.map(str, iter([1, 2]))] == ["1", "2"]
    go_on.set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_stream_goes_on_in_a_forked_child() -> None:
    """Which has no thread for it. Work that the thread had begun is done again."""
    ahead, go_on, parent = Ahead(), threading.Event(), os.getpid()

    def work(item: int) -> int:
        if item and os.getpid() == parent:
            go_on.wait(WAIT)
        return item * item

    stream = ahead.map(work, iter(range(5)))
    _, result = next(stream)
    child = os.fork()
    if not child:
        code = 1
        try:
            ahead.wait()  # for no thread of the parent
            found = [result(), *(each() for _, each in stream)]
            again = [each() for _, each in ahead.map(work, iter(range(3)))]
            ahead.wait()
            code = 0 if (found, again) == ([0, 1, 4, 9, 16], [0, 1, 4]) else 2
        finally:
            os._exit(code)
    assert exit_code(child) == 0
    go_on.set()
    assert [result(), *(each() for _, each in stream)] == [0, 1, 4, 9, 16]


def exit_code(child: int) -> int | None:
    """Wait for a child. RETURNS: its exit code; None if it hangs, and it is killed."""
    for _ in range(100 * WAIT):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        threading.Event().wait(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None
