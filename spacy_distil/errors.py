"""Errors for users: each message says what to do.

They all derive from `DistilError`. The command line prints the message without a traceback.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from wasabi import msg


class DistilError(Exception):
    """Base class of the errors that spacy-distil raises on purpose."""


class ConfigError(DistilError, ValueError):
    """A setting has a value that cannot work."""


class WeightsError(DistilError, ValueError):
    """A saved encoder is missing, truncated or does not fit its config."""


class CorpusError(DistilError, ValueError):
    """Text or annotations cannot be read."""


class DamagedError(DistilError, ValueError):
    """A file does not have the content that was written."""


class OutOfMemoryError(DistilError, RuntimeError):
    """A batch needs more memory than the device has."""


class MissingExtraError(DistilError, ImportError):
    """A feature needs a package that an extra of spacy-distil installs."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import a module, or raise MissingExtraError, which names the extra that installs it.

    module: dotted name, e.g. "torch".
    extra: the extra of spacy-distil that installs it, e.g. "train".
    purpose: what needs the module, to complete "... needs ...".
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != missing:
            raise
        raise MissingExtraError(
            f"{purpose} needs '{missing}', which is not installed. "
            f"Install it with: pip install 'spacy-distil[{extra}]'"
        ) from error


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Print a `DistilError` as spaCy's commands print theirs, and exit with 1."""
    try:
        yield
    except DistilError as error:
        msg.fail(type(error).__name__.removesuffix("Error"), str(error))
        sys.exit(1)
