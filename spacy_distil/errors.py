"""What went wrong, in words that say what to do.

Every error that users are meant to read derives from `DistilError`; the command line prints its
message without a traceback.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from wasabi import msg


class DistilError(Exception):
    """Base of the errors that spacy-distil raises on purpose."""


class ConfigError(DistilError, ValueError):
    """A setting has a value that cannot work."""


class WeightsError(DistilError, ValueError):
    """A saved encoder is missing, truncated or does not fit its config."""


class CorpusError(DistilError, ValueError):
    """Text or annotations cannot be read."""


class OutOfMemoryError(DistilError, RuntimeError):
    """A batch takes more memory than the device has."""


class MissingExtraError(DistilError, ImportError):
    """A feature needs a package that an extra of spacy-distil installs."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    module: dotted name, e.g. "torch".
    extra: the extra of spacy-distil that installs it, e.g. "train".
    purpose: what it is needed for, to complete "... needs ...".
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
