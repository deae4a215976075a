"""Runs that stop before their end: by an error, by Ctrl-C, or by SIGTERM, which a machine sends
before it shuts down.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from wasabi import Printer, msg

from spacy_distil.errors import DistilError


class RunInterrupted(DistilError):
    """A run received SIGTERM and has saved a checkpoint to go on from."""

    @classmethod
    def after(cls, step: int, n_steps: int) -> RunInterrupted:
        """Make the error. step: the last one taken. n_steps: of the whole run."""
        return cls(
            f"stopped by SIGTERM after step {step} of {n_steps}, and saved a checkpoint. "
            f"Go on with --resume"
        )


class Interruption:
    """A context in which SIGTERM is noted and does not end the process.

    received: whether SIGTERM came.
    """

    def __init__(self) -> None:
        self.received = False
        self._before: Any = None
        # Python lets only the main thread handle signals.
        self._handles = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Interruption:
        if self._handles:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._handles:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = True


def explain_stop(
    error: BaseException, step: int, newest_step: int | None, *, printer: Printer = msg
) -> None:
    """Tell the user how to go on after an error, if there is a checkpoint.

    step: the last one taken. newest_step: of the newest checkpoint.
    """
    if newest_step is not None:
        reason = "Ctrl-C" if isinstance(error, KeyboardInterrupt) else repr(error)
        printer.warn(
            f"Stopped at step {step} by {reason}. Go on from step {newest_step}, the newest "
            f"checkpoint, with --resume"
        )
