"""Files and directories that are complete or absent, whatever interrupts the writing.

Everything is written into a scratch directory beside its place, flushed to the disk and renamed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The names of scratch directories begin with this.
UNFINISHED = ".unfinished-"
# A directory that is being replaced waits in this part of the scratch directory.
REPLACED = ".replaced"
# A scratch directory that has not changed for so many seconds belongs to a dead process. No other
# sign is reliable: the process may run on another machine that shares the disk.
STALE_AFTER = 600.0


@contextmanager
def scratch_directory(parent: Path) -> Iterator[Path]:
    """Make a directory in `parent`, which need not exist yet. It is deleted at the end."""
    parent.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the path to write a file to. It moves to `path` if the block ends without an error.

    If `path` exists, its mode stays; if it is a link, the file that it points to is replaced. The
    scratch directory also takes the temporary files of libraries such as safetensors.
    """
    path = path.resolve()
    with scratch_directory(path.parent) as scratch:
        yield scratch / path.name
        if path.exists():
            shutil.copymode(path, scratch / path.name)
        flush(scratch / path.name)
        os.replace(scratch / path.name, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with atomic_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def atomic_directory(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a new directory, which moves to `path` if the block ends without an error.

    replace: whether to replace a directory that exists by then. If several processes make the same
        directory, the first one should stay, since it may be in use already.
    """
    with scratch_directory(path.parent) as scratch:
        new, replaced = scratch / path.name, scratch / REPLACED / path.name
        new.mkdir()
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                flush(file)
        if not replace:
            try:
                new.rename(path)
            except OSError:
                if not path.exists():
                    raise
            return
        replaced.parent.mkdir()
        try:
            if path.exists():
                path.rename(replaced)
            new.rename(path)
        except BaseException:
            _put_back(replaced, path)
            raise


def _put_back(replaced: Path, path: Path) -> None:
    if replaced.exists() and not path.exists():
        replaced.rename(path)


def flush(path: Path) -> None:
    """Wait until a file is on the disk. A power cut may otherwise keep its name, but no content."""
    # Copies of read-only files cannot be opened for writing. Windows flushes no others.
    with path.open("rb" if os.name == "posix" else "r+b") as file:
        os.fsync(file.fileno())


def remove_unfinished(directory: Path, *, older_than: float = 0.0) -> None:
    """Delete the scratch directories that killed processes have left.

    If a process was killed while it replaced a directory, that directory returns to its place.

    older_than: seconds without a change. Give `STALE_AFTER` if other processes may be writing.
    """
    for scratch in directory.glob(f"{UNFINISHED}*"):
        try:
            changed = max(path.stat().st_mtime for path in (scratch, *scratch.rglob("*")))
        except OSError:
            continue  # another process has just deleted or renamed it
        if time.time() - changed >= older_than:
            for replaced in scratch.glob(f"{REPLACED}/*"):
                _put_back(replaced, directory / replaced.name)
            shutil.rmtree(scratch, ignore_errors=True)


def free_bytes(directory: Path) -> int:
    """Return the free space on the disk of a directory, which need not exist yet."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    return shutil.disk_usage(existing).free
