"""Processes that are killed before any of their file operations, and small disks."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Operations that change files, by their names among Python's audit events.
OPERATIONS = frozenset(
    {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink"}
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000  # Linux: CLONE_NEWUSER, CLONE_NEWNS
_PRIVATE, _REMOUNT = 0x44000, 32  # MS_REC | MS_PRIVATE, MS_REMOUNT


@dataclass(frozen=True)
class Counting:
    """Which operations count, of those that change files, and the one before which the process
    gets SIGKILL.

    directory: they concern this directory.
    first: text in the path of the one that counts first; empty for any.
    only: text in the paths of those that count from then on.
    kill_at: number of the deadly one, from 1; 0 for none.
    """

    directory: Path
    first: str = ""
    only: str = ""
    kill_at: int = 0


class FileOperations:
    """Counts the operations of this process that change files.

    on_first: called with the operation that counts first.
    """

    def __init__(self, counting: Counting, on_first: Callable[[], Any] = lambda: None) -> None:
        self.counting = counting
        self.directory = str(counting.directory.resolve())
        self.on_first = on_first
        self.has_begun = False
        self.count = 0
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & _WRITES:
                return
        elif event not in OPERATIONS:
            return
        path = arguments[0]
        if not isinstance(path, (str, os.PathLike)):
            return  # a descriptor, or the path as bytes
        text = str(os.path.abspath(os.fspath(path)))
        if not text.startswith(self.directory):
            return
        if not self.has_begun:
            if self.counting.first not in text:
                return
            self.has_begun = True
            self.on_first()
        self.count += self.counting.only in text
        if self.count == self.counting.kill_at and self.counting.only in text:
            os.kill(os.getpid(), signal.SIGKILL)


def run_and_kill(work: Callable[[], Any], directory: Path, kill_at: int) -> bool:
    """Run something in a child that is killed before an operation. See `Counting`.

    work: must not use torch, which may have threads that the child lacks.
    RETURNS: whether it was killed; False if it had fewer operations.
    """
    child = os.fork()
    if not child:
        status = 1
        try:
            FileOperations(Counting(directory, kill_at=kill_at))
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def mount_small_disk(directory: Path, n_bytes: int) -> None:
    """Mount an empty disk of `n_bytes` at `directory`, for this process alone.

    The process must have one thread. Raises OSError where the system does not allow it: it needs
    Linux, and either root or namespaces of users.
    """
    if sys.platform != "linux":
        raise OSError("small disks are mounted on Linux alone")
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function: Any, *arguments: Any) -> None:
        if function(*arguments) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    user, group = os.getuid(), os.getgid()
    call(libc.unshare, _NEW_MOUNTS | (_NEW_USER if user else 0))
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    call(libc.mount, None, b"/", None, _PRIVATE, None)
    path, options = os.fsencode(directory), f"size={n_bytes}".encode()
    call(libc.mount, b"tmpfs", path, b"tmpfs", 0, options)


def resize_disk(directory: Path, n_bytes: int) -> None:
    """Change the size of a disk that `mount_small_disk` mounted."""
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={n_bytes}".encode()
    if libc.mount(b"tmpfs", os.fsencode(directory), b"tmpfs", _REMOUNT, options) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
