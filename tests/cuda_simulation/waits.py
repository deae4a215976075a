"""Notes of the moments in which the CPU would wait for the GPU."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
# Parts of the simulation, which notes do not mention.
OWN = {str(HERE / name) for name in ("device.py", "tensors.py", "waits.py")}
# Lines of code in a note, the innermost first.
LINES = 3


class WaitError(RuntimeError):
    """The CPU would wait for the GPU where that is forbidden."""


class Waits:
    """Collects notes while `watch` is active.

    forbidden: whether a wait raises `WaitError`.
    """

    def __init__(self) -> None:
        self.forbidden = False
        self._notes: list[str] | None = None

    @contextmanager
    def watch(self) -> Iterator[list[str]]:
        """Give a list that gets a note for each wait."""
        before, self._notes = self._notes, []
        try:
            yield self._notes
        finally:
            self._notes = before

    def note(self, operation: str) -> None:
        """Note that an operation waits, with the lines that asked for it."""
        if self._notes is None and not self.forbidden:
            return
        frames = [
            f"{frame.filename}:{frame.lineno} {frame.line}"
            for frame in reversed(traceback.extract_stack())
            if frame.filename not in OWN and "/torch/" not in frame.filename
        ]
        note = f"{operation}: " + " <- ".join(frames[:LINES])
        if self._notes is not None:
            self._notes.append(note)
        if self.forbidden:
            raise WaitError(note)


waits = Waits()
