"""What one of several processes does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from spacy_distil.errors import DistilError

T = TypeVar("T")


def on_main(accelerator: Accelerator, call: Callable[[], T]) -> T:
    """What `call` returns on the main process, on all of them; or the `DistilError` that it raises,
    so that no process waits for one that has given up.
    """
    outcome: list[Any] = [(None, None)]
    if accelerator.is_main_process:
        try:
            outcome = [(None, call())]
        except DistilError as error:
            outcome = [(error, None)]
    problem, value = broadcast_object_list(outcome)[0]
    if problem is not None:
        raise problem
    found: T = value
    return found
