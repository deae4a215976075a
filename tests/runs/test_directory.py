"""Directories with and without an earlier run."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from confection import Config

from spacy_distil.errors import ConfigError, WriteError
from spacy_distil.runs.directory import RunDirectory
from spacy_distil.runs.files import UNFINISHED, atomic_directory
from spacy_distil.runs.settings import changed_settings
from tests.kills import run_and_kill

SETTINGS = Config({"training": {"seed": 0, "log": 1}})
INPUTS = {"the teacher": "a", "the documents": "b"}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(
        tmp_path / "out",
        kind="encoder",
        own=frozenset({"model"}),
        kept=frozenset({"cache"}),
        free=frozenset({"training.log"}),
        early=frozenset({"labels"}),
        model="model",
    )


def begin(directory: RunDirectory, *, finished: bool = False) -> None:
    directory.prepare(SETTINGS, None)
    directory.begin(SETTINGS, {"inputs": INPUTS}, None)
    directory.write_results({"finished": finished, "inputs": INPUTS})
    for name in ("cache", "checkpoints"):
        (directory.path / name).mkdir()


def names(directory: RunDirectory) -> set[str]:
    return {path.name for path in directory.path.iterdir()}


def test_the_same_run_is_resumed(directory: RunDirectory) -> None:
    assert directory.find_earlier(SETTINGS, INPUTS, resume=True, force=False) is None
    begin(directory)
    with pytest.raises(ConfigError, match="--resume"):
        directory.check(resume=False, force=False)
    for inputs in (INPUTS, {"the teacher": "a"}):
        found = directory.find_earlier(SETTINGS, inputs, resume=True, force=True)
        assert found == {"kind": "encoder", "finished": False, "inputs": INPUTS}
    free = Config({"training": {"seed": 0, "log": 9}})
    assert directory.find_earlier(free, INPUTS, resume=True, force=False) is not None
    assert "checkpoints" in names(directory)


@pytest.mark.parametrize(
    ("settings", "inputs", "words"),
    [
        ({"training": {"seed": 1, "log": 1}}, INPUTS, r"training\.seed"),
        (SETTINGS, {**INPUTS, "the documents": "c"}, "contents of the documents"),
    ],
)
def test_another_run_is_refused_or_replaced(
    settings: dict[str, object], inputs: dict[str, str], words: str, directory: RunDirectory
) -> None:
    begin(directory)
    with pytest.raises(ConfigError, match=words):
        directory.find_earlier(Config(settings), inputs, resume=True, force=False)
    assert directory.find_earlier(Config(settings), inputs, resume=True, force=True) is None
    directory.prepare(Config(settings), None)
    assert names(directory) == {"distil.cfg", "distil.json", "cache", "checkpoints"}
    directory.begin(Config(settings), {"inputs": inputs}, None)
    assert names(directory) == {"distil.cfg", "distil.json", "cache"}
    found = directory.find_earlier(Config(settings), inputs, resume=True, force=False)
    assert found == {"kind": "encoder", "finished": False, "inputs": inputs}


def contents(directory: RunDirectory) -> dict[str, str]:
    root = directory.path
    return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()}


OTHER = Config({"training": {"seed": 1, "log": 1}})


def replace_until(directory: RunDirectory, *, labels: bool) -> None:
    """A run that replaces another leaves it alone until it begins."""
    assert directory.find_earlier(OTHER, INPUTS, resume=False, force=True) is None
    directory.prepare(OTHER, None)
    if labels:
        (directory.path / "labels").mkdir()
        (directory.path / "labels" / "tagger.json").write_text("new")


def fail_to_replace(directory: RunDirectory, *, labels: bool, begins: bool = False) -> None:
    with directory.restoring():
        replace_until(directory, labels=labels)
        if begins:
            directory.begin(OTHER, {"inputs": INPUTS}, None)
        raise ConfigError("the corpus")


@pytest.fixture
def old(directory: RunDirectory) -> dict[str, str]:
    begin(directory, finished=True)
    (directory.path / "labels").mkdir()
    (directory.path / "labels" / "tagger.json").write_text("old")
    (directory.path / "model").write_text("old")
    return contents(directory)


@pytest.mark.parametrize("labels", [False, True])
def test_an_error_before_a_run_begins_leaves_the_one_to_replace(
    labels: bool, directory: RunDirectory, old: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match="the corpus"):
        fail_to_replace(directory, labels=labels)
    assert contents(directory) == old


@pytest.mark.parametrize("labels", [False, True])
def test_after_a_kill_before_a_run_begins_the_one_to_replace_is_put_back(
    labels: bool, directory: RunDirectory, old: dict[str, str]
) -> None:
    replace_until(directory, labels=labels)  # and no more
    kept = {"model", "distil.cfg", "distil.json"}
    assert {k: contents(directory)[k] for k in kept} == {k: old[k] for k in kept}
    earlier = directory.find_earlier(SETTINGS, INPUTS, resume=True, force=False)
    assert earlier is not None
    directory.prepare(SETTINGS, earlier)
    assert contents(directory) == old


def test_after_a_kill_another_run_may_replace_it(
    directory: RunDirectory, old: dict[str, str]
) -> None:
    replace_until(directory, labels=True)
    with pytest.raises(ConfigError, match="the corpus"):
        fail_to_replace(directory, labels=True)
    assert contents(directory) == old
    with pytest.raises(ConfigError, match="the corpus"):
        fail_to_replace(directory, labels=True, begins=True)  # too late
    assert names(directory) == {"distil.cfg", "distil.json", "cache", "labels"}
    assert contents(directory)["labels/tagger.json"] == "new"


def test_a_kill_while_a_run_is_removed_leaves_all_of_its_result_or_no_model(
    directory: RunDirectory,
) -> None:
    result = {f"part{i}": "old" for i in range(8)} | {"model": "old"}
    kill_at, killed = 0, True
    while killed:
        kill_at += 1
        shutil.rmtree(directory.path, ignore_errors=True)
        begin(directory, finished=True)
        for name, text in result.items():
            (directory.path / name).write_text(text)
        killed = run_and_kill(
            lambda: directory.begin(OTHER, {"inputs": INPUTS}, None), directory.path, kill_at
        )
        left = contents(directory)
        assert "model" not in left or result.items() <= left.items()
    assert kill_at > len(result)


def test_a_run_of_another_command_is_never_replaced(directory: RunDirectory) -> None:
    begin(directory)
    other = replace(directory, kind="pipeline")
    with pytest.raises(ConfigError, match="holds a run of `spacy distil encoder`"):
        other.check(resume=False, force=False)
    with pytest.raises(ConfigError, match="Give another directory"):
        other.find_earlier(SETTINGS, INPUTS, resume=True, force=True)
    assert "checkpoints" in names(directory)


def test_scratch_of_other_processes_stays(directory: RunDirectory) -> None:
    """A pipeline may be quantized into a directory of the run. A killed run's own scratch goes."""
    begin(directory)
    left = directory.path / f"{UNFINISHED}model-abcd_123"
    left.mkdir()
    with atomic_directory(directory.path / "int8") as unfinished:
        directory.prepare(SETTINGS, {"inputs": INPUTS})
        (unfinished / "file").write_text("whole")
    assert (directory.path / "int8" / "file").read_text() == "whole"
    assert not left.exists()


def test_without_results_there_is_no_run_and_its_files_are_deleted(directory: RunDirectory) -> None:
    """A kill during the removal leaves checkpoints, which no run must resume from."""
    begin(directory)
    (directory.path / "distil.json").unlink()
    directory.check(resume=False, force=False)
    assert directory.find_earlier(SETTINGS, INPUTS, resume=True, force=False) is None
    directory.prepare(SETTINGS, None)
    assert names(directory) == {"distil.cfg", "cache"}


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (None, "There is no checkpoint yet. Free some space there, and start again"),
        (6, "The checkpoint of step 6 is kept. Free some space there, and go on with --resume"),
    ],
)
def test_a_full_disk_ends_a_run_with_advice(
    step: int | None, words: str, directory: RunDirectory
) -> None:
    """Whoever writes: our own code, or a library with files of its own."""
    full = OSError(errno.ENOSPC, "No space left on device", str(directory.path / "log"))
    with pytest.raises(WriteError) as raised, directory.explain_write_errors(lambda: step):
        raise full
    message = str(raised.value)
    assert message.startswith(f"{directory.path / 'log'} cannot be written: No space left")
    assert message.endswith(words)
    assert raised.value.__cause__ is full
    with (
        pytest.raises(WriteError, match="shards are complete"),
        directory.explain_write_errors(lambda: step),
    ):
        raise raised.value.of("x", is_full=True).with_advice("2 shards are complete", "go on")


def test_a_finished_run_needs_no_place_to_write(directory: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    nowhere = replace(directory, path=tmp_path / "file" / "out")
    for resume in (False, True):
        with pytest.raises(WriteError, match="cannot be written: Not a directory"):
            nowhere.check(resume=resume, force=True)
    begin(directory, finished=True)
    directory.check(resume=True, force=False)
    directory.check(resume=False, force=True)


def test_other_files_are_not_touched(directory: RunDirectory) -> None:
    directory.path.mkdir()
    (directory.path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        directory.find_earlier(SETTINGS, INPUTS, resume=True, force=True)
    directory.path.joinpath("thesis.txt").unlink()
    directory.path.rmdir()
    directory.path.write_text("a file")
    with pytest.raises(ConfigError, match="is a file"):
        directory.check(resume=False, force=False)


def test_free_settings_stand_for_blocks_too() -> None:
    before = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    after = {"a": {"b": 2, "c": {"d": 4}}, "e": 3, "f": 5}
    assert changed_settings(before, after) == ["a.b", "a.c.d", "f"]
    assert changed_settings(before, after, {"a.c"}) == ["a.b", "f"]
    assert changed_settings(before, after, {"a"}) == ["f"]
