"""Files and directories that are complete or absent."""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import srsly
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from spacy_distil.errors import CorpusError, WriteError
from spacy_distil.runs import files
from spacy_distil.runs.files import (
    REPLACED,
    UNFINISHED,
    atomic_contents,
    atomic_directory,
    atomic_file,
    free_bytes,
    remove_unfinished,
    write_text,
)
from tests.kills import mount_small_disk, run_and_kill


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_there_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"  # the directory is created
    with atomic_file(path) as unfinished:
        unfinished.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_file_stays_as_it_was_if_the_block_raises(
    error: type[BaseException], tmp_path: Path
) -> None:
    def fail() -> None:
        with atomic_file(tmp_path / "a.txt") as unfinished:
            unfinished.write_text("half")
            raise error

    write_text(tmp_path / "a.txt", "before\u00e4")
    with pytest.raises(error):
        fail()
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "before\u00e4"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_that_is_not_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_file(path) as first:
        first.write_text("first")
        with atomic_file(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
        with pytest.raises(FileNotFoundError), atomic_file(path):
            pass
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert names(tmp_path) == ["file"]


def test_a_directory_replaces_another_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model"
    for content in ("first", "second"):
        with atomic_directory(path) as unfinished:
            (unfinished / content).write_text(content)
    assert names(path) == ["second"]

    def fail() -> None:
        with atomic_directory(path) as unfinished:
            (unfinished / "third").write_text("half")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert names(path) == ["second"]
    assert names(path.parent) == ["model"]


def test_without_replace_the_first_of_two_directories_stays(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with atomic_directory(path, replace=False) as slow:
        with atomic_directory(path, replace=False) as fast:
            (fast / "fast").write_text("")
        (slow / "slow").write_text("")
    assert names(path) == ["fast"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_directory_that_cannot_be_put_in_place_leaves_the_old_one(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")  # which cannot swap two directories
    path = tmp_path / "model"
    with atomic_directory(path) as unfinished:
        (unfinished / "first").write_text("")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target == path and self.parent.name != REPLACED:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(error), atomic_directory(path):
        pass
    assert names(path) == ["first"]
    assert names(tmp_path) == ["model"]


def replace_model(path: Path) -> None:
    with atomic_directory(path) as unfinished:
        for name in ("a", "b"):
            (unfinished / name).write_text("new")


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_killed_replacement_leaves_the_old_or_the_new_directory(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each of its file operations. Where directories cannot be swapped, there are two
    renames, and the next command puts the old directory back.
    """
    monkeypatch.setattr(sys, "platform", platform)
    path = tmp_path / "model"
    found, kill_at, was_killed = [], 0, True
    while was_killed:
        kill_at += 1
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        for name in ("a", "b"):
            (path / name).write_text("old")
        was_killed = run_and_kill(lambda: replace_model(path), tmp_path, kill_at)
        missing = not path.exists()
        remove_unfinished(tmp_path)
        assert names(tmp_path) == ["model"]
        found.append((missing, {(path / name).read_text() for name in ("a", "b")}))
    assert all(len(contents) == 1 for _, contents in found)
    assert found[0] == (False, {"old"})
    assert found[-1] == (False, {"new"})
    assert [missing for missing, _ in found].count(True) == (platform == "darwin")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_second_interruption_between_the_renames_loses_nothing(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if Ctrl-C were pressed again, while the old directory goes back to its place."""
    monkeypatch.setattr(sys, "platform", "darwin")
    path = tmp_path / "model"
    replace_model(path)
    (path / "old").write_text("")
    rename = Path.rename

    def interrupt(self: Path, target: Path) -> Path:
        if target == path:
            raise error
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupt)
        with pytest.raises(error):
            replace_model(path)
    assert not path.exists()
    remove_unfinished(tmp_path)
    assert names(path) == ["a", "b", "old"]


def test_files_of_a_set_move_when_all_are_written(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "b").write_text("old")

    def fail() -> None:
        with atomic_contents(tmp_path, own=(), last="a") as new:
            (new / "b").write_text("new")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert (tmp_path / "b").read_text() == "old"

    def succeed() -> None:
        with atomic_contents(tmp_path, own=(), last="a") as new:
            for name in ("c", "a", "b"):
                (new / name).write_text("new")

    kill_at = 1
    while run_and_kill(succeed, tmp_path, kill_at):
        remove_unfinished(tmp_path)
        if (tmp_path / "a").exists():
            assert (tmp_path / "b").read_text() == (tmp_path / "c").read_text() == "new"
        for name in ("a", "c"):
            (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / "b").write_text("old")
        kill_at += 1
    assert kill_at > 4
    assert names(tmp_path) == ["a", "b", "c", "mine"]
    assert (tmp_path / "b").read_text() == "new"


def test_a_link_to_a_directory_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "deep" / "link"
    link.parent.mkdir()
    target.mkdir()
    (target / "old").write_text("")
    link.symlink_to(target)
    replace_model(link)
    assert link.is_symlink()
    assert names(target) == ["a", "b"]
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "later")
    replace_model(dangling)
    assert names(tmp_path / "later") == ["a", "b"]


def test_the_next_writer_of_a_file_cleans_up_after_a_killed_one(tmp_path: Path) -> None:
    """But not after the writers of other files, which may be at work."""
    run_and_kill(lambda: replace_model(tmp_path / "one"), tmp_path, 4)
    run_and_kill(lambda: replace_model(tmp_path / "one-more"), tmp_path, 4)
    assert len(names(tmp_path)) == 2
    replace_model(tmp_path / "one")
    assert len(names(tmp_path)) == 3  # a process may have written these a moment ago
    long_ago = time.time() - 3600
    for path in tmp_path.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    replace_model(tmp_path / "one")
    left = [path for path in tmp_path.iterdir() if path.name.startswith(UNFINISHED)]
    assert [names(path) for path in left] == [["one-more"]]
    write_text(tmp_path / "one-more", "")
    assert names(tmp_path) == ["one", "one-more"]


# Errors of the system


def write_bytes(path: Path, n: int) -> None:
    with atomic_file(path) as unfinished:
        unfinished.write_bytes(bytes(n))


def write_safetensors(path: Path, n: int) -> None:
    with atomic_file(path) as unfinished:
        save_file({"a": np.zeros(n, "u1")}, unfinished)


def write_array(path: Path, n: int) -> None:
    with atomic_file(path) as unfinished, unfinished.open("wb") as file:
        np.zeros(n, "u1").tofile(file)


def write_checkpoint(path: Path, n: int) -> None:
    with atomic_file(path) as unfinished, unfinished.open("wb") as file:
        torch.save({"a": torch.zeros(n, dtype=torch.uint8)}, file)


def write_checkpoint_by_name(path: Path, n: int) -> None:
    with atomic_file(path) as unfinished:
        torch.save({"a": torch.zeros(n, dtype=torch.uint8)}, unfinished)


def write_msgpack(path: Path, n: int) -> None:
    with atomic_directory(path) as unfinished:
        srsly.write_msgpack(unfinished / "file", {"a": bytes(n)})


def write_json(path: Path, n: int) -> None:
    with atomic_directory(path) as unfinished:
        srsly.write_json(unfinished / "file", {"a": "b" * n})


def write_tokenizer(path: Path, n: int) -> None:
    with atomic_directory(path) as unfinished:
        pieces = {str(i).zfill(40): i for i in range(n // 20)}
        Tokenizer(WordLevel(pieces, unk_token="0".zfill(40))).save(str(unfinished / "file"))


def write_copy(path: Path, n: int) -> None:
    with TemporaryDirectory() as source, atomic_directory(path) as unfinished:
        (Path(source) / "file").write_bytes(bytes(n))
        shutil.copytree(source, unfinished, dirs_exist_ok=True)


WRITERS: list[Callable[[Path, int], None]] = [
    *(write_bytes, write_safetensors, write_array, write_checkpoint, write_checkpoint_by_name),
    *(write_msgpack, write_json, write_tokenizer, write_copy),
]


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_is_one_sentence(write: Callable[[Path, int], None], tmp_path: Path) -> None:
    """Whatever library writes. The old file stays, and the message says how to go on."""

    def work() -> str:
        disk = tmp_path / "disk"
        disk.mkdir()
        try:
            mount_small_disk(disk, 400_000)
        except OSError as error:
            return f"skip: {error}"
        path = disk / "result"
        write(path, 50_000)
        before = content_of(path)
        with pytest.raises(WriteError) as raised:
            write(path, 1_000_000)
        assert content_of(path) == before
        assert names(disk) == ["result"]
        return str(raised.value)

    message = in_child(work)
    if message.startswith("skip: "):
        pytest.skip(f"no small disk can be mounted: {message}")
    reason = "No space left on device|the disk has taken only a part of it"
    assert re.fullmatch(
        rf"{tmp_path}/disk/result cannot be written: ({reason})\. It needs about [\d.]+ MB; "
        r"[\d.]+ MB are free there\. It is as it was before\. Free some space there, "
        r"and start again",
        message,
    ), message


def content_of(path: Path) -> dict[str, bytes]:
    files = path.rglob("*") if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files}


def in_child(work: Callable[[], str]) -> str:
    """Run something in a process of its own. RETURNS: its result, or its error."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            result = work()
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        os.write(writer, result.encode()[:60_000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        result = pipe.read()
    os.waitpid(child, 0)
    return result


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG])
def test_other_reasons_are_named(number: int, tmp_path: Path) -> None:
    """The system's own errors, since a test can have neither a quota nor a read-only disk."""
    path = tmp_path / "result"
    full = number == errno.EDQUOT
    with pytest.raises(WriteError) as raised, atomic_file(path) as unfinished:
        raise OSError(number, os.strerror(number), str(unfinished))
    assert f"{path} cannot be written: {os.strerror(number)}" in str(raised.value)
    assert ("Free some space" in str(raised.value)) == full
    assert names(tmp_path) == []


def test_errors_of_reading_stay_as_they_are(tmp_path: Path) -> None:
    """A block that writes a result also reads what it is made of."""
    for error in (
        PermissionError(errno.EACCES, "Permission denied", "/data/corpus.txt"),
        FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "corpus.txt")),
        ValueError("broken"),
        CorpusError("no text"),
    ):
        with pytest.raises(type(error)) as raised, atomic_directory(tmp_path / "result"):
            raise error
        assert raised.value is error


def test_a_full_disk_elsewhere_is_named(tmp_path: Path) -> None:
    """Libraries have temporary files of their own."""
    with (
        pytest.raises(WriteError, match=r"^/elsewhere/x cannot be written"),
        atomic_directory(tmp_path / "result"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", "/elsewhere/x")


def test_a_write_error_keeps_the_first_advice() -> None:
    plain = WriteError.of("a cannot be written: full", is_full=True)
    advised = plain.with_advice("b is kept", "go on")
    assert str(advised) == (
        "a cannot be written: full. b is kept. Free some space there, and go on"
    )
    assert advised.with_advice("c", "d") is advised
    assert isinstance(plain, OSError)
    copy = pickle.loads(pickle.dumps(advised))
    assert (str(copy), copy.problem) == (str(advised), plain.problem)


def test_every_file_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []

    def flush(path: Path) -> None:
        assert names(tmp_path) == [path.relative_to(tmp_path).parts[0]]
        flushed.append(path.name)

    monkeypatch.setattr(files, "flush", flush)
    with atomic_directory(tmp_path / "model") as unfinished:
        (unfinished / "deep").mkdir()
        for name in ("a", "deep/b"):
            (unfinished / name).write_text("")
    assert sorted(flushed) == ["a", "b"]
    shutil.rmtree(tmp_path / "model")
    write_text(tmp_path / "c", "")
    assert flushed[2:] == ["c"]


def test_mode_and_link_of_a_file_stay(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "deep" / "link"
    link.parent.mkdir()
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o600


def test_unfinished_work_is_removed_by_its_age(tmp_path: Path) -> None:
    for name in ("dead", "alive", "empty"):
        (tmp_path / f"{UNFINISHED}{name}" / "new").mkdir(parents=True)
    for name in ("dead", "alive"):
        (tmp_path / f"{UNFINISHED}{name}" / "new" / "file").write_text("half")
    (tmp_path / "mine").write_text("mine")
    long_ago = time.time() - 3600
    for path in tmp_path.rglob("*"):
        if path != tmp_path / f"{UNFINISHED}alive" / "new" / "file":
            os.utime(path, (long_ago, long_ago))
    remove_unfinished(tmp_path, older_than=600)
    assert names(tmp_path) == [f"{UNFINISHED}alive", "mine"]
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["mine"]
    remove_unfinished(tmp_path / "missing")


def test_free_space_of_a_directory_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") > 0


@pytest.mark.parametrize("foreign", [False, True])
def test_contents_take_the_place_of_the_old_ones(foreign: bool, tmp_path: Path) -> None:
    directory = tmp_path / "folder"
    (directory / "b").mkdir(parents=True)
    (directory / "c").write_text("old")
    if foreign:
        (directory / "README.md").write_text("mine")
    with atomic_contents(directory, own={"a", "b", "c"}, last="a") as new:
        (new / "a").write_text("new")
        (new / "b").mkdir()
        (new / "b" / "inside").write_text("new")
    assert names(directory) == [*["README.md"] * foreign, "a", "b"]
    assert (directory / "b" / "inside").read_text() == "new"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_to_a_folder_is_replaced(dangling: bool, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    if not dangling:
        target.mkdir()
        (target / "a").write_text("another's")
    link.symlink_to(target)
    with atomic_contents(link, own={"a"}, last="a") as new:
        (new / "a").write_text("new")
    assert not link.is_symlink()
    assert (link / "a").read_text() == "new"
    assert dangling or (target / "a").read_text() == "another's"


def test_a_folder_that_cannot_be_moved_is_replaced_file_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the lower layer of an overlay, which a container image is."""
    directory = tmp_path / "folder"
    directory.mkdir()
    (directory / "a").write_text("old")

    def rename(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(self))

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    with atomic_contents(directory, own={"a"}, last="a") as new:
        (new / "a").write_text("new")
    assert (directory / "a").read_text() == "new"
    assert names(tmp_path) == ["folder"]


def test_a_replaced_directory_keeps_its_mode(tmp_path: Path) -> None:
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o775)
    with atomic_directory(directory) as new:
        (new / "a").write_text("new")
    assert directory.stat().st_mode & 0o777 == 0o775
