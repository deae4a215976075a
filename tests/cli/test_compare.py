from __future__ import annotations

import json
import shlex
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import spacy
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from typer.testing import CliRunner

from spacy_distil.cli import distil_cli


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two taggers, a test set and a README in the working directory."""
    nlp = spacy.blank("en")
    nlp.add_pipe("tagger")
    docs = [
        Doc(nlp.vocab, words=["dogs", "bark"], spaces=[True, False], tags=["NNS", tag])
        for tag in ("VBP", "VBP", "NN")
    ]
    examples = [Example(nlp.make_doc(doc.text), doc) for doc in docs]
    nlp.initialize(lambda: examples)
    (tmp_path / "training").mkdir()
    nlp.to_disk(tmp_path / "training" / "tagger")
    nlp.to_disk(tmp_path / "training" / "tagger-2")
    DocBin(docs=docs).to_disk(tmp_path / "test.spacy")
    (tmp_path / "README.md").write_text("<!-- compare:start --><!-- compare:end -->\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_compare_writes_prints_and_fills_the_readme(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "test.spacy", "--pipeline", "big=training/tag*", "--teacher", "big"]
    arguments += ["--output", "metrics", "--repeats", "1", "--load-repeats", "1", "--limit", "2"]
    arguments += ["--threads", "1", "--batch-size", "8", "--readme", "README.md", "--title", "T a"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/spacy/__main__.py", "distil", *arguments])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("spacy.__main__", None))
    result = CliRunner().invoke(distil_cli, arguments)
    assert result.exit_code == 0, (result.output, capfd.readouterr())
    assert "XPOS acc" in result.stdout
    report = json.loads((project / "metrics" / "compare.json").read_text())
    assert report["command"].startswith("python -m spacy distil compare test.spacy --pipeline")
    assert shlex.split(report["command"])[4:] == arguments
    assert report["n_docs"] == 2
    assert report["settings"]["batch_size"] == 8
    assert [(row["name"], row["pipelines"]) for row in report["rows"]] == [
        ("big", ["training/tagger", "training/tagger-2"])
    ]
    assert set(report["rows"][0]["scores"]) == {"tag_acc"}
    assert "XPOS acc" in (project / "README.md").read_text()
    assert (project / "metrics" / "compare.md").is_file()
    assert (project / "metrics" / "compare.html").is_file()
    assert (project / "metrics" / "compare.png").is_file()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("tagger", "--pipeline tagger: expected NAME=PATH"),
        ("=training/tagger", "expected NAME=PATH"),
        ("a=training/seed-*", "nothing matches training/seed-*. Train it first"),
        ("a=training/none", "No pipeline 'training/none'"),
    ],
)
def test_errors_say_what_was_expected(project: Path, option: str, message: str) -> None:
    result = CliRunner().invoke(
        distil_cli, ["compare", "test.spacy", "--pipeline", option, "--output", "metrics"]
    )
    assert result.exit_code == 1
    # The message is wrapped to the terminal's width.
    assert message in " ".join(result.output.split())
    assert not (project / "metrics").exists()
