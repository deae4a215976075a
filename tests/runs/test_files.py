"""Files and directories that are complete or absent."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from spacy_distil.runs import files
from spacy_distil.runs.files import (
    REPLACED,
    UNFINISHED,
    atomic_directory,
    atomic_file,
    free_bytes,
    remove_unfinished,
    write_text,
)


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


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    scratch = tmp_path / f"{UNFINISHED}x"
    for directory in (scratch / "model", scratch / REPLACED / "model"):
        directory.mkdir(parents=True)
    (scratch / REPLACED / "model" / "old").write_text("")
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["old"]


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
