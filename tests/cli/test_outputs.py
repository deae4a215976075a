"""Commands look whether they can write their result before they read anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import spacy
from typer.testing import CliRunner

from spacy_distil.cli import distil_cli
from spacy_distil.cli.configs import encoder_config, pipeline_config

# Else these commands would say that there is nothing to read, or that the blank pipeline has no
# encoder.
COMMANDS = {
    "quantize": ["quantize", "../blank", "OUT"],
    "the report of quantize": ["quantize", "../blank", "new", "--report", "OUT"],
    "convert": ["convert", "../blank", "OUT"],
    "student": ["student", "nowhere", "--output", "OUT"],
    "adapt": ["adapt", "nowhere", "--corpus", "nowhere", "--output", "OUT"],
    "encoder": ["encoder", "encoder.cfg", "--output", "OUT"],
    "pipeline": ["pipeline", "nowhere", "pipeline.cfg", "--output", "OUT"],
}
# Other commands write files into the directory, and do not replace it.
REPLACING = ("quantize", "convert", "student")


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spacy.blank("en").to_disk(tmp_path / "blank")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("empty").mkdir()
    Path("file").write_text("")
    Path("encoder.cfg").write_text(encoder_config("nowhere"))
    Path("pipeline.cfg").write_text(pipeline_config())


def run(command: str, output: str) -> str:
    """Run a command that fails. RETURNS: its message, its lines joined."""
    arguments = [output if part == "OUT" else part for part in COMMANDS[command]]
    result = CliRunner().invoke(distil_cli, arguments)
    assert result.exit_code == 1, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_cannot_be_written_to(command: str) -> None:
    if command == "convert":
        pytest.importorskip("spacy_transformers")
    message = run(command, "file/new/out")
    assert "cannot be written: Not a directory" in message
    assert "Choose a place that can be written to" in message


@pytest.mark.parametrize("command", REPLACING)
def test_the_working_directory_is_not_replaced(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command == "convert":
        pytest.importorskip("spacy_transformers")
    spacy.blank("en").to_disk("blank")
    monkeypatch.chdir("empty")
    assert "Choose a directory in it, such as new" in run(command, ".")


def test_init_config_names_the_file() -> None:
    result = CliRunner().invoke(distil_cli, ["init-config", "encoder", "file/encoder.cfg"])
    assert result.exit_code == 1
    assert "file/encoder.cfg cannot be written" in " ".join(result.output.split())
