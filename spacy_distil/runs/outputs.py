"""Looking, before any work begins, whether its result can be written."""

from __future__ import annotations

import tempfile
from pathlib import Path

from spacy_distil.errors import ConfigError, WriteError
from spacy_distil.runs.files import (
    UNFINISHED,
    existing_parent,
    explain_write_errors,
    is_replaceable,
)


def check_output(output: Path, *, force: bool | None, source: Path | None = None) -> None:
    """Raise an error if a directory must not, or cannot, be written to `output` as a whole.

    force: replace a saved pipeline. Anything else in `output` is never replaced. None if the
        command has no such option.
    source: the pipeline to read, a directory or the name of a package. It must not be overwritten.
    """
    if source is not None and source.exists():
        new, old = output.resolve(), source.resolve()
        if new == old:
            raise ConfigError(f"{output} is the pipeline itself. Choose another directory.")
        if old in new.parents:
            raise ConfigError(f"{output} lies inside the pipeline {source}. Choose another place.")
        if new in old.parents:
            raise ConfigError(f"{output} holds the pipeline {source}. Choose another directory.")
    if output.is_symlink() and not output.exists():
        raise ConfigError(
            f"{output} is a link to {output.readlink()}, which is missing. Choose another "
            "directory."
        )
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        if not force:
            advice = "" if force is None else ", or replace it with --force"
            raise ConfigError(f"{output} exists. Choose another directory{advice}.")
        if not (output / "meta.json").is_file():
            raise ConfigError(
                f"{output} is not a saved pipeline (it has no meta.json), and is not replaced. "
                "Choose another directory."
            )
    if not is_replaceable(output):
        raise ConfigError(
            f"{output} is the working directory, a parent of it or a mount point, and cannot be "
            f"replaced as a whole. Choose a directory in it, such as {output / 'new'}."
        )
    check_writable(output.resolve().parent)
    if output.exists():
        check_writable(output)


def check_file(path: Path) -> None:
    """Raise `WriteError` if a file cannot be written. Its directory need not exist yet."""
    check_writable(path.resolve().parent)


def check_writable(directory: Path) -> None:
    """Raise `WriteError` if nothing can be written into a directory, which need not exist yet."""
    with explain_write_errors(directory):
        # The permissions do not tell all: the disk may be read-only, or out of quota.
        # A kill leaves nothing: on Linux the file has no name.
        parent = existing_parent(directory)
        try:
            tempfile.TemporaryFile(prefix=UNFINISHED, dir=parent).close()
        except FileNotFoundError as error:  # such as in /proc, which is no disk
            raise WriteError.of(
                f"{directory} cannot be written: {parent} takes no files", is_full=False
            ) from error
