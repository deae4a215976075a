"""Errors for users: each message says what to do.

They all derive from `DistilError`. The command line prints the message without a traceback.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
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


class TeacherError(DistilError, RuntimeError):
    """A component of the teacher fails on a document."""


class DamagedError(DistilError, ValueError):
    """A file does not have the content that was written."""


class WriteError(DistilError, OSError):
    """A file or directory cannot be written: the disk is full, or something forbids it.

    problem: what cannot be written, and why.
    is_full: whether more space would help.
    has_advice: whether the message already tells what is left of the work.
    """

    problem: str = ""
    is_full: bool = False
    has_advice: bool = False

    @classmethod
    def of(cls, problem: str, *, is_full: bool) -> WriteError:
        """Make the error of a file that stays as it was."""
        kept, go_on = "It is as it was before", "start again"
        error = cls(_advise(problem, is_full, kept, go_on))
        error.problem, error.is_full = problem, is_full
        return error

    def with_advice(self, kept: str, go_on: str) -> WriteError:
        """Return the same error with advice, or this one if it has some.

        kept: what is left of the work. go_on: how to continue.
        """
        if self.has_advice:
            return self
        error = WriteError(_advise(self.problem, self.is_full, kept, go_on))
        error.problem, error.is_full, error.has_advice = self.problem, self.is_full, True
        return error


def _advise(problem: str, is_full: bool, kept: str, go_on: str) -> str:
    remedy = "Free some space there" if is_full else "Choose a place that can be written to"
    return f"{problem}. {kept}. {remedy}, and {go_on}"


class OutOfMemoryError(DistilError, RuntimeError):
    """A batch needs more memory than the device has."""


class MissingExtraError(DistilError, ImportError):
    """A feature needs a package that an extra of spacy-distil installs."""


# Modules, and their extra, for training and any work on an encoder of the torch engine.
TRAINING = {"torch": "train", "transformers": "train", "accelerate": "train"}


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import a module, or raise MissingExtraError, which names the extra that installs it.

    module: dotted name, e.g. "torch".
    extra: the extra of spacy-distil that installs it, e.g. "train".
    purpose: what needs the module, to complete "... needs ...".
    """
    require_all({module: extra}, purpose=purpose)
    return sys.modules[module]


def require_all(modules: Mapping[str, str], *, purpose: str) -> None:
    """Import modules, or raise one MissingExtraError for all that are missing.

    modules: dotted name of each to the extra of spacy-distil that installs it.
    purpose: what needs them, to complete "... needs ...".
    """
    packages = {module.split(".")[0] for module in modules}
    missing: dict[str, str] = {}
    error = None
    for module, extra in modules.items():
        package = module.split(".")[0]
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as found:
            absent = (found.name or "").split(".")[0]
            if absent == package:
                missing[package], error = extra, found
            elif absent not in packages:  # its own turn comes
                raise
    if missing:
        names = " and ".join(f"'{package}'" for package in missing)
        extras = ",".join(dict.fromkeys(missing.values()))
        raise MissingExtraError(
            f"{purpose} needs {names}, which {'is' if len(missing) == 1 else 'are'} not installed. "
            f"Install {'it' if len(missing) == 1 else 'them'} with: "
            f"pip install 'spacy-distil[{extras}]'"
        ) from error


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Print a `DistilError` as spaCy's commands print theirs, and exit with 1."""
    try:
        yield
    except DistilError as error:
        msg.fail(type(error).__name__.removesuffix("Error"), str(error))
        sys.exit(1)
