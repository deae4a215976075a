"""Work that one of several processes does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from spacy_distil.errors import DistilError

T = TypeVar("T")


def on_main(accelerator: Accelerator, call: Callable[[], T]) -> T:
    """Call a function on the main process, and return its result on all of them.

    An error is raised on all of them, too, so that no process waits for one that has failed. If it
    is no `DistilError`, the others raise one that shows it.
    """
    outcome: list[Any] = [(None, None)]
    if accelerator.is_main_process:
        try:
            outcome = [(None, call())]
        except DistilError as error:
            outcome = [(error, None)]
        except Exception as error:
            # It may be of a kind that cannot be pickled.
            broadcast_object_list([(DistilError(repr(error)), None)])
            raise
    failure, result = broadcast_object_list(outcome)[0]
    if failure is not None:
        raise failure
    returned: T = result
    return returned
