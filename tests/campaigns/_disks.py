"""Runs and commands on a disk that fills up, as the children of a campaign do them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spacy_distil.errors import DistilError
from spacy_distil.runs.files import UNFINISHED
from tests import tiny_runs
from tests.campaigns.kill_outputs import digests_of
from tests.campaigns.kill_runs import result_of
from tests.children import differences, digests
from tests.kills import mount_small_disk, resize_disk

LARGE = 1 << 30
RUNS = ("encoder", "pipeline", "adapt")
# Of encoders.
MODELS = ("model.safetensors", "model.onnx")


def do(name: str, inputs: Path, output: Path, *, resume: bool = False) -> None:
    if name == "encoder":
        tiny_runs.run_encoder(inputs, output, {"resume": resume})
    elif name == "pipeline":
        tiny_runs.run_pipeline(inputs, output, {"resume": resume})
    else:
        tiny_runs.replace(name, inputs, output, False)


def found(name: str, output: Path) -> dict[str, str]:
    return result_of(output) if name in ("encoder", "pipeline") else digests_of(output, name)


def measure(
    name: str, inputs: Path, disk: Path, old: Path
) -> tuple[int, int, dict[str, str]] | str:
    """Run a command where there is room.

    disk: a directory, for a disk of the child's own.
    old: the result that the command replaces; missing if there is none.
    RETURNS: bytes on the disk before it and at most, and the result; or why there can be no disk.
    """
    try:
        mount_small_disk(disk, LARGE)
    except OSError as error:
        return str(error)
    if old.exists():
        shutil.copytree(old, disk / "out")
    before = peak = used(disk)

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal peak
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            peak = max(peak, used(disk))

    sys.addaudithook(note)
    do(name, inputs, disk / "out")
    return before, peak, found(name, disk / "out")


def fill(
    name: str, inputs: Path, disk: Path, old: Path, n_bytes: int, expected: Mapping[str, str]
) -> tuple[bool, list[str]]:
    """Run a command on a disk of some size, and again when it has become larger.

    RETURNS: whether the disk was too small, and what is wrong.
    """
    mount_small_disk(disk, n_bytes)
    output = disk / "out"
    if old.exists():
        shutil.copytree(old, output)
    before = found(name, output) if old.exists() else {}
    problems = []
    was_full = True
    try:
        do(name, inputs, output)
        was_full = False
    except (OSError, DistilError) as error:
        if not isinstance(error, DistilError):
            if name != "to_disk":  # spaCy writes files of its own
                raise
        elif "free" not in str(error) or "\n" in str(error):
            problems.append(f"an unclear message: {error}")
    if was_full and name not in RUNS and found(name, output) != before:
        problems.append("the old result has changed")
    if was_full and name in RUNS and not _is_whole(output, expected):
        problems.append("a model is not whole")
    left = [str(path) for path in disk.rglob(f"{UNFINISHED}*")]
    if left:
        problems.append(f"left behind: {', '.join(left)}")
    resize_disk(disk, LARGE)
    if name == "student" and not was_full:
        shutil.rmtree(output)  # it replaces nothing
    do(name, inputs, output, resume=True)
    wrong = differences(found(name, output), dict(expected))
    if wrong:
        problems.append(f"wrong after it had room: {', '.join(wrong[:5])}")
    return was_full, problems


def _is_whole(output: Path, expected: Mapping[str, str]) -> bool:
    """Whether the models of a run that has not finished are whole, if there are any.

    expected: the files of the finished run. An encoder is only written at the end.
    """
    now = digests(output)
    for model in ("model-best", "model-last"):
        files = {name for name in now if name.startswith(f"{model}/")}
        if files and files != {name for name in expected if name.startswith(f"{model}/")}:
            return False
    return all(now[name] == expected[name] for name in MODELS if name in now)


def used(disk: Path) -> int:
    """Bytes in use on a disk."""
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize
