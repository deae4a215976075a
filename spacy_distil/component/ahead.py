"""Work that a thread does ahead of a stream, such as encoding the next batch of docs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")


class Ahead:
    """The threads of the streams of one component.

    A stream may be suspended for good, continue in another thread, or be closed by the garbage
    collector, which runs in any thread, also in a thread of a stream. It may also continue in a
    forked child, which has none of the threads: there each stream does its work itself.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._running: set[Future[Any]] = set()

    def __reduce__(self) -> Any:
        """Pickle or copy it without the threads, which other streams may have begun meanwhile."""
        return type(self), ()

    def map(
        self, work: Callable[[S], T], items: Iterator[S]
    ) -> Iterator[tuple[S, Callable[[], T]]]:
        """Yield each item, when the next one has been read and is in work.

        YIELDS (item, result): the callback returns the result of `work`, or raises its error.
        """
        executor, pid = ThreadPoolExecutor(max_workers=1), os.getpid()
        is_open = True

        def run(item: S) -> Any:
            return work(item) if is_open else None

        def start(item: S) -> tuple[S, Callable[[], T]]:
            if os.getpid() != pid:
                return item, lambda: work(item)
            future = executor.submit(run, item)
            self._add(future)
            return item, lambda: future.result() if os.getpid() == pid else work(item)

        try:
            yield from _one_ahead(map(start, items))
        finally:
            is_open = False
            if os.getpid() == pid:
                # Without waiting: this may be the executor's own thread, or hold a lock that the
                # thread needs. Nor is anything cancelled, for which `wait` would wait forever.
                executor.shutdown(wait=False)

    def wait(self) -> None:
        """Wait until the threads have done the work that they have begun or have to do.

        Call this before weights change.
        """
        if self._pid == os.getpid():
            wait(tuple(self._running))
        else:
            self._forget()

    def _add(self, future: Future[Any]) -> None:
        if self._pid != os.getpid():
            self._forget()
        self._running.add(future)
        future.add_done_callback(self._running.discard)

    def _forget(self) -> None:
        """Forget the threads of the parent, in a forked child."""
        self._pid, self._running = os.getpid(), set()


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the same items, each after the next one has been made. An error of the next one comes
    after them.
    """
    ahead = deque(islice(items, 1))
    while ahead:
        try:
            ahead.extend(islice(items, 1))
        except Exception:
            yield from ahead
            raise
        yield ahead.popleft()
