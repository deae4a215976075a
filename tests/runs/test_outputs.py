"""Whether a result can be written is known before the work begins."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from spacy_distil.errors import ConfigError, WriteError
from spacy_distil.runs.outputs import check_file, check_output, check_writable


def test_only_a_saved_pipeline_is_replaced(tmp_path: Path) -> None:
    output = tmp_path / "out"
    check_output(output, force=False)
    output.mkdir()
    check_output(output, force=False)
    (output / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"another directory, or replace it with --force\.$"):
        check_output(output, force=False)
    with pytest.raises(ConfigError, match=r"exists\. Choose another directory\.$"):
        check_output(output, force=None)
    with pytest.raises(ConfigError, match="not a saved pipeline"):
        check_output(output, force=True)
    (output / "meta.json").write_text("{}")
    check_output(output, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_pipeline_does_not_replace_its_source(tmp_path: Path) -> None:
    source = tmp_path / "out" / "source"
    source.mkdir(parents=True)
    for directory in (source, source.parent):
        (directory / "meta.json").write_text("{}")
    link = tmp_path / "link"
    link.symlink_to(source)
    for output in (source, link):
        with pytest.raises(ConfigError, match="the pipeline itself"):
            check_output(output, force=True, source=source)
    with pytest.raises(ConfigError, match="holds the pipeline"):
        check_output(source.parent, force=True, source=source)
    with pytest.raises(ConfigError, match="lies inside the pipeline"):
        check_output(source / "int8", force=True, source=source)
    check_output(tmp_path / "new", force=True, source=Path("en_core_web_sm"))


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "out"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"is a link to .*gone, which is missing"):
        check_output(link, force=True)
    assert link.is_symlink()


@pytest.mark.parametrize("output", [".", "..", "", "/"])
def test_the_working_directory_and_mount_points_stay(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "meta.json").write_text("{}")  # or `..` would be no pipeline
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"Choose (a directory in it|another)"):
        check_output(Path(output), force=True)
    check_output(Path(output, "new"), force=True) if output != "/" else None


def no_directory(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file"


def not_allowed(tmp_path: Path) -> Path:
    (tmp_path / "locked").mkdir(mode=0o555)
    if os.getuid():
        return tmp_path / "locked"
    if not Path("/sys/kernel").is_dir():  # nobody makes directories there, not even root
        pytest.skip("no directory that root must not write to")
    return Path("/sys/kernel")


def no_disk(tmp_path: Path) -> Path:
    if not Path("/proc/self").is_dir():
        pytest.skip("no file system that takes no files")
    return Path("/proc")


@pytest.mark.skipif(os.name != "posix", reason="needs permissions of Unix")
@pytest.mark.parametrize("place", [no_directory, not_allowed, no_disk])
def test_a_place_that_cannot_be_written_to(place: Callable[[Path], Path], tmp_path: Path) -> None:
    parent = place(tmp_path)
    reason = "(Not a directory|Permission denied|Operation not permitted|.* takes no files)"
    for check in (
        lambda: check_writable(parent / "new" / "out"),
        lambda: check_file(parent / "report.json"),
        lambda: check_output(parent / "out", force=False),
    ):
        with pytest.raises(WriteError, match=rf"{parent}.* cannot be written: {reason}"):
            check()
    assert list(tmp_path.rglob("out")) == []
