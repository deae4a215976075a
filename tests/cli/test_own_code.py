"""`--code`: pipelines with a component and an architecture of the user's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import spacy
from spacy.tokens import DocBin
from typer.testing import CliRunner

from spacy_distil.cli import distil_cli
from tests.own_code import make_own
from tests.util import make_examples


@pytest.fixture
def own(torch_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline, annotated docs and, in own.py, the code, in the working directory."""
    shutil.copytree(torch_pipeline, tmp_path / "own")
    docs = [each.reference for each in make_examples(spacy.blank("en"), 12, start=100)]
    DocBin(docs=docs, store_user_data=True).to_disk(tmp_path / "dev.spacy")
    monkeypatch.chdir(tmp_path)
    make_own(tmp_path / "own")
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    """Exit status and output, its lines joined."""
    result = CliRunner().invoke(distil_cli, arguments)
    return result.exit_code, " ".join(result.output.split())


def test_quantize(own: Path) -> None:
    status, output = run("quantize", "own", "int8", "--corpus", "dev.spacy")
    assert (status, "Traceback" in output) == (1, False)
    assert ".Tagger.v1', which nothing here registers" in output
    assert not (own / "int8").exists()
    status, output = run("quantize", "own", "int8", "--corpus", "dev.spacy", "--code", "own.py")
    assert status == 0, output
    assert spacy.load("int8")("Ann met Bob.").user_data["capitals"] == 2


def test_missing_code(own: Path) -> None:
    for command in (
        ("quantize", "own", "int8"),
        ("convert", "own", "out"),
        ("compare", "dev.spacy", "-p", "own=own", "-o", "out"),
        ("benchmark", "own", "-t", "dev.spacy"),
        ("encoder", "none.cfg", "-o", "out"),
        ("pipeline", "own", "none.cfg", "-o", "out"),
    ):
        status, output = run(*command, "--code", "none.py")
        assert status == 1
        assert "No code at none.py: expected a Python file" in output
