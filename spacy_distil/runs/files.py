"""Files and directories that are complete or absent, whatever interrupts the writing.

Everything is written into a scratch directory beside its place, flushed to the disk and moved. If
that fails, because the disk is full or for a similar reason, the error is a `WriteError`.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from spacy_distil.errors import DistilError, WriteError
from spacy_distil.tables import megabytes

# The names of scratch directories begin with this.
UNFINISHED = ".unfinished-"
# A directory that is being replaced waits in this part of the scratch directory.
REPLACED = ".replaced"
# A scratch directory that has not changed for so many seconds belongs to a dead process. No other
# sign is reliable: the process may run on another machine that shares the disk.
STALE_AFTER = 600.0

# Errors of the system that more space cures.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Libraries write with code of their own. Rust and shutil.copytree give the number of the system's
# error in the message only; these are words of torch and numpy, which do not give it.
_NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
_CUT_SHORT = re.compile(
    r"PytorchStreamWriter failed|unexpected pos \d+ vs \d+|\d+ requested and \d+ written"
)


@contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """Make a directory beside `path`, whose parent need not exist yet. It is deleted at the end.

    Those that killed processes have left for the same path are deleted first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(path.parent, older_than=STALE_AFTER, name=path.name)
    scratch = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}{path.name}-", dir=path.parent))
    try:
        yield scratch
    finally:
        _remove_scratch(scratch)


@contextmanager
def atomic_file(path: Path, *, needed: int | None = None) -> Iterator[Path]:
    """Yield the path to write a file to. It moves to `path` if the block ends without an error.

    If `path` exists, its mode stays; if it is a link, the file that it points to is replaced. The
    scratch directory also takes the temporary files of libraries such as safetensors.

    needed: bytes, roughly, for errors. None for the size of the one that it replaces.
    """
    with explain_write_errors(path, needed=needed or _size_of(path)):
        path = path.resolve()
        with scratch_directory(path) as scratch:
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
def atomic_contents(directory: Path, *, own: Collection[str], last: str) -> Iterator[Path]:
    """Yield a new directory. If the block ends without an error, what it holds takes the place of
    `own` in `directory`.

    If there is nothing else, the directory is replaced as a whole, in one step where the system can
    do that. Otherwise the files move one by one, after all have been written. A link in the place
    of the directory or of a file is replaced, not followed.

    own: names of all files and directories that may be replaced.
    last: name of the file that moves last, and so says that all are there.
    """
    is_link = directory.is_symlink()
    path = directory.parent.resolve() / directory.name if is_link else directory.resolve()
    with explain_write_errors(path, needed=_size_of(path)):
        others = set(os.listdir(path)) - set(own) if path.is_dir() and not is_link else set()
        as_a_whole = is_link or (not others and is_replaceable(path))
        with scratch_directory(path if as_a_whole else path / last) as scratch:
            new = scratch / path.name
            new.mkdir()
            yield new
            _flush_all(new)
            if not (as_a_whole and _is_replaced(new, path)):
                _move_contents(new, path, own, last)


def _is_replaced(new: Path, path: Path) -> bool:
    """Replace a directory, if it can be moved. RETURNS: whether it could."""
    try:
        _replace(new, path)
    except OSError as error:
        if error.errno != errno.EXDEV:  # overlayfs does not move directories of a lower layer
            raise
        return False
    return True


def _move_contents(new: Path, path: Path, own: Collection[str], last: str) -> None:
    written = sorted(new.iterdir(), key=lambda file: (file.name == last, file.name))
    for file in written:
        _remove_directory(path / file.name)
        os.replace(file, path / file.name)
    for name in set(own) - {file.name for file in written}:
        _remove_directory(path / name)
        (path / name).unlink(missing_ok=True)


def _remove_directory(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)


@contextmanager
def atomic_directory(
    path: Path, *, replace: bool = True, needed: int | None = None
) -> Iterator[Path]:
    """Yield a new directory, which moves to `path` if the block ends without an error.

    If `path` is a link, the directory that it points to is replaced.

    replace: whether to replace a directory that exists by then. If several processes make the same
        directory, the first one should stay, since it may be in use already.
    needed: bytes, roughly, for errors. None for the size of the one that it replaces.
    """
    with explain_write_errors(path, needed=needed or _size_of(path)):
        path = path.resolve()
        with scratch_directory(path) as scratch:
            new = scratch / path.name
            new.mkdir()
            yield new
            _flush_all(new)
            if replace:
                _replace(new, path)
                return
            try:
                new.rename(path)
            except OSError:
                if not path.exists():
                    raise


def _replace(new: Path, path: Path) -> None:
    """Move a directory from a scratch directory to `path`, which may exist."""
    exists = path.exists() or path.is_symlink()
    if path.is_dir():
        shutil.copymode(path, new)
    if exists and _exchange(new, path):
        return
    replaced = new.parent / REPLACED / path.name
    replaced.parent.mkdir(exist_ok=True)
    # An error or a kill between the two leaves the old one to `_remove_scratch`.
    if exists:
        path.rename(replaced)
    new.rename(path)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two directories in one step, if the system can do so. RETURNS: whether it did."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return (
        hasattr(libc, "renameat2")
        and libc.renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0
    )


def _flush_all(directory: Path) -> None:
    for file in directory.rglob("*"):
        if file.is_file():
            flush(file)


def flush(path: Path) -> None:
    """Wait until a file is on the disk. A power cut may otherwise keep its name, but no content."""
    # Copies of read-only files cannot be opened for writing. Windows flushes no others.
    with path.open("rb" if os.name == "posix" else "r+b") as file:
        os.fsync(file.fileno())


def remove_unfinished(directory: Path, *, older_than: float = 0.0, name: str | None = None) -> None:
    """Delete the scratch directories that killed processes have left.

    If a process was killed while it replaced a directory, that directory returns to its place.

    older_than: seconds without a change. Give `STALE_AFTER` if other processes may be writing.
    name: only those of this file or directory. None for all.
    """
    # `mkdtemp` adds eight characters, none of them a hyphen.
    pattern = "*" if name is None else f"{glob.escape(name)}-{8 * '?'}"
    for scratch in directory.glob(f"{UNFINISHED}{pattern}"):
        try:
            changed = max(path.stat().st_mtime for path in (scratch, *scratch.rglob("*")))
        except OSError:
            continue  # another process has just deleted or renamed it
        if time.time() - changed >= older_than:
            _remove_scratch(scratch)


def _remove_scratch(scratch: Path) -> None:
    """Delete a scratch directory. A directory that has not been replaced returns to its place."""
    for replaced in scratch.glob(f"{REPLACED}/*"):
        if not (scratch.parent / replaced.name).exists():
            replaced.rename(scratch.parent / replaced.name)
    shutil.rmtree(scratch, ignore_errors=True)


def is_replaceable(directory: Path) -> bool:
    """Whether another directory can take the place of this one, which need not exist.

    The working directory cannot be replaced without pulling it from under the user's shell, and a
    mount point not at all.
    """
    directory = directory.resolve()
    try:
        here = Path.cwd()
    except FileNotFoundError:  # somebody has deleted it
        return not os.path.ismount(directory)
    return directory not in (here, *here.parents) and not os.path.ismount(directory)


def free_bytes(directory: Path) -> int:
    """Return the free space on the disk of a directory, which need not exist yet."""
    return shutil.disk_usage(existing_parent(directory)).free


def existing_parent(path: Path) -> Path:
    """Return the path, or the closest of its parents that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


@contextmanager
def explain_write_errors(path: Path, *, needed: int | None = None) -> Iterator[None]:
    """Turn the errors of a block that writes `path` into a `WriteError`, if it cannot be written.

    These are errors of the system, and those that libraries make of them. Any other error stays.

    needed: bytes that `path` needs, roughly. None or 0 if that is not known.
    """
    try:
        yield
    except DistilError:
        raise
    except Exception as error:
        found = _find_reason(error, path)
        if found is None:
            raise
        reason, file, is_full = found
        problem = f"{file} cannot be written: {reason}"
        if is_full:
            free = f"{megabytes(free_bytes(file))} are free there"
            problem += f". It needs about {megabytes(needed)}; {free}" if needed else f". {free}"
        raise WriteError.of(problem, is_full=is_full) from error


def _find_reason(error: BaseException | None, path: Path) -> tuple[str, Path, bool] | None:
    """Find out why something cannot be written.

    RETURNS: the reason, the file, and whether the disk is full; None for another kind of error.
    """
    while error is not None:
        number = getattr(error, "errno", None)
        quoted = _NUMBER.search(str(error))
        if quoted:
            number = int(quoted[1] or quoted[2])
        if number in (*_FULL, errno.EFBIG):  # only writing ends in these
            return os.strerror(number), _final_path(error, path) or path, number in _FULL
        if _CUT_SHORT.search(str(error)):
            return "the disk has taken only a part of it", path, True
        file = _final_path(error, path)
        is_ours = file is not None and (file == path or path in file.parents)
        # A missing file is an error of whoever should have written it.
        if file is not None and is_ours and number not in (None, errno.ENOENT):
            return os.strerror(number), file, False
        error = error.__cause__ or error.__context__
    return None


def _final_path(error: BaseException, path: Path) -> Path | None:
    """Return the file that an error names, if any; `path` for a scratch file or a parent."""
    name = getattr(error, "filename", None)
    if not isinstance(name, (str, bytes)):
        return None
    file = Path(os.fsdecode(name))
    is_scratch = UNFINISHED in str(file)
    return (
        path if is_scratch or file.resolve() in (path.resolve(), *path.resolve().parents) else file
    )


def _size_of(path: Path) -> int:
    """Return the bytes of a file or of a directory's files; 0 if there is none."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
