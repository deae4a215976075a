"""Typical mistakes end in one sentence, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import spacy
from spacy.tokens import DocBin
from typer.testing import CliRunner

from spacy_distil.cli import distil_cli
from tests.util import make_examples


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline, annotated docs, text, bytes that are no text, and a config, in the working
    directory.
    """
    nlp = spacy.blank("en")
    nlp.to_disk(tmp_path / "blank")
    DocBin(docs=[each.reference for each in make_examples(nlp, 4)]).to_disk(tmp_path / "dev.spacy")
    (tmp_path / "texts.txt").write_text("Ann visited Rome.\n")
    (tmp_path / "bytes").write_bytes(bytes(range(256)))
    (tmp_path / "meta-alone").mkdir()
    (tmp_path / "meta-alone" / "meta.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(distil_cli, ["init-config", "encoder", "encoder.cfg"])
    return tmp_path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("encoder bytes -o out", "config bytes is not a text file in UTF-8"),
        ("pipeline blank bytes -o out", "config bytes is not a text file in UTF-8"),
        (
            "encoder encoder.cfg -o out --nosuch 1",
            "No such option '--nosuch'. Settings have dotted",
        ),
        ("adapt blank --corpus texts.txt -o out --nosuch 1", "No such option '--nosuch'."),
        ("pipeline blank encoder.cfg -o out --nosuch 1", "No such option '--nosuch'."),
        ("quantize meta-alone out", "meta-alone cannot be loaded: "),
        ("convert meta-alone out", "meta-alone/config.cfg cannot be read: "),
        ("init-config pipeline new.cfg --teacher meta-alone", "config.cfg cannot be read: "),
        ("quantize blank out --code texts.txt", "No code at texts.txt: expected a Python file"),
        ("quantize blank blank/out", "blank/out lies inside the pipeline blank"),
        ("compare dev.spacy -p a=blank -o out --readme bytes", "bytes is not a Markdown file"),
        ("compare bytes -p a=blank -o out", "Cannot read bytes: expected a .spacy file"),
    ],
)
@pytest.mark.slow
def test_mistakes(directory: Path, command: str, message: str) -> None:
    result = CliRunner().invoke(distil_cli, command.split())
    output = " ".join(result.output.split())
    assert (result.exit_code, type(result.exception)) == (1, SystemExit), output
    assert message in output
    assert "Traceback" not in output
    assert not (directory / "out").exists()


def test_no_name_is_no_pipeline(directory: Path) -> None:
    result = CliRunner().invoke(distil_cli, ["quantize", "", "out"])
    assert "is not a saved spaCy pipeline" in " ".join(result.output.split())
