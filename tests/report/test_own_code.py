"""`--code`: the processes that measure import it, too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spacy_distil.cli import distil_cli
from tests.own_code import make_own
from tests.report.stock_pipelines import Trained


@pytest.fixture
def own(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline, a test set and, in own.py, the code, in the working directory."""
    shutil.copytree(trained.full, tmp_path / "own")
    shutil.copy(trained.test, tmp_path / "test.spacy")
    make_own(tmp_path / "own")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    """Exit status and output, its lines joined."""
    options = ["--threads", "1", "--repeats", "1", "--load-repeats", "1", "--output", "out"]
    result = CliRunner().invoke(distil_cli, [*arguments, *options])
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.slow
def test_benchmark(own: Path) -> None:
    arguments = ["benchmark", "own", "-t", "test.spacy", "--gold", "test.spacy"]
    arguments += ["--batch-sizes", "4", "--latency-texts", "0"]
    status, output = run(*arguments)
    assert (status, "Traceback" in output) == (1, False)
    assert "which nothing here registers. If it is yours, name the Python file" in output
    status, output = run(*arguments, "-c", "own.py")
    assert status == 0, output
    (row,) = json.loads((own / "out" / "benchmark.json").read_text())["rows"]
    assert row["code"] == "own.py"
    assert row["scores"]["tag_acc"]["interval"] is not None
    assert "tagger" in row["reliability"]


@pytest.mark.slow
def test_compare(own: Path, bare_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", bare_python)
    status, output = run("compare", "test.spacy", "-p", "own=own", "--code", "own.py")
    assert status == 0, output
    (row,) = json.loads((own / "out" / "compare.json").read_text())["rows"]
    assert "tag_acc" in row["scores"]
