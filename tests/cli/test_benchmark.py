from __future__ import annotations

import json
import shlex
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import spacy
from typer.testing import CliRunner

from spacy_distil.cli import distil_cli


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline and texts in the working directory."""
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.to_disk(tmp_path / "splitter")
    spacy.blank("en").to_disk(tmp_path / "a=b")
    (tmp_path / "texts.txt").write_text("Dogs bark.\n\nCats do not.\nMice.\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_benchmark_prints_and_writes(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["benchmark", "small=splitter", "a=b", "--texts", "texts.txt", "--output", "out"]
    arguments += ["--batch-sizes", "2,1,2", "--threads", "1", "--repeats", "1"]
    arguments += ["--load-repeats", "1", "--limit", "2", "--latency-texts", "9"]
    arguments += ["--python", f"small={sys.executable}", "--txt-documents", "lines"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/spacy/__main__.py", "distil", *arguments])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("spacy.__main__", None))
    result = CliRunner().invoke(distil_cli, arguments)
    assert result.exit_code == 0, (result.output, capfd.readouterr())
    assert "words/s, batch 2" in result.stdout
    data = json.loads((project / "out" / "benchmark.json").read_text())
    assert shlex.split(data["command"])[4:] == arguments
    assert (data["n_texts"], data["n_words"]) == (2, 7)
    assert data["settings"]["batch_sizes"] == [2, 1]
    # A path that has = in it is one, and no name.
    assert [(row["name"], row["pipeline"], row["python"]) for row in data["rows"]] == [
        ("small", "splitter", sys.executable),
        ("a=b", "a=b", None),
    ]
    assert (project / "out" / "benchmark.md").is_file()
    assert (project / "out" / "benchmark.html").is_file()
    assert (project / "out" / "benchmark.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x=none"], "No pipeline 'none'"),
        (["=splitter"], "=splitter: expected PIPELINE or NAME=PIPELINE"),
        (["splitter", "splitter"], "another pipeline is named 'splitter', too"),
        (["splitter", "--threads", "1,two"], "--threads 1,two: expected whole numbers"),
        (["splitter", "--batch-sizes", "0"], "batch_sizes = 0: expected numbers of at least 1"),
        (["splitter", "--python", "bin/python"], "--python bin/python: expected NAME=PYTHON"),
        (["splitter", "--python", "x=bin/python"], "--python x: expected names of pipelines"),
        (["splitter", "--python", "splitter=bin/python"], "No interpreter bin/python"),
        (["splitter", "--pin-cores", "0"], "pin_cores = 0"),
    ],
)
def test_errors_say_what_was_expected(project: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(
        distil_cli, ["benchmark", *arguments, "--texts", "texts.txt", "--output", "out"]
    )
    assert result.exit_code == 1
    # The message is wrapped to the terminal's width.
    assert message in " ".join(result.output.split())
    assert not (project / "out").exists()
