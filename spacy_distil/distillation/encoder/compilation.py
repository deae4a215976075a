"""An error message for users whose torch cannot compile the encoders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from spacy_distil.errors import ConfigError


@contextmanager
def explain_compile_errors() -> Iterator[None]:
    """Raise `ConfigError` if torch cannot compile."""
    from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

    try:
        yield
    except TorchDynamoException as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"training.compile = true, but torch cannot compile the encoders here: {reason}\n"
            f"Set training.compile = false. (On a CPU, torch needs a C++ compiler such as g++.)"
        ) from error
