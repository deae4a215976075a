"""Directories that are there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from spacy_distil.errors import ConfigError


def check_output(output: Path, *, force: bool, source: Path | None = None) -> None:
    """Raise ConfigError where `output` must not be written.

    force: a saved pipeline may be replaced; anything else that lies there may not.
    source: the directory that is read (or a name, where no such directory is there), which must not
        be overwritten.
    """
    if source is not None and source.exists() and output.resolve() == source.resolve():
        raise ConfigError(f"{output} is the pipeline itself. Choose another directory.")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not force:
        raise ConfigError(f"{output} exists. Choose another directory, or replace it with --force.")
    if not (output / "meta.json").is_file():
        raise ConfigError(
            f"{output} is no saved pipeline (it has no meta.json), and is not replaced. "
            "Choose another directory."
        )


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A new directory beside `output`, which takes its place in the end.

    Where the block raises, the new directory is deleted and `output` is as it was.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    # A neighbour, so that it lies on the same file system and can be renamed.
    with TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        yield new
        if output.exists():
            output.rename(old)
        try:
            new.rename(output)
        except OSError:
            if old.exists():
                old.rename(output)
            raise
