"""The benchmark of GPUs, as far as it runs without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import spacy
import torch
import typer
from spacy.tokens import DocBin
from spacy.training import Example
from thinc.compat import has_cupy_gpu
from typer.testing import CliRunner

import benchmarks.gpu.__main__ as gpu
from benchmarks.encode.sides import PipelineSide
from benchmarks.encode.timing import training
from tests.util import make_examples, make_nlp

app = typer.Typer()
app.command()(gpu.main)


@pytest.fixture
def docs(tmp_path: Path, bert_dir: Path) -> Path:
    nlp = make_nlp(bert_dir, initialize=False)
    path = tmp_path / "docs.spacy"
    DocBin(docs=[example.reference for example in make_examples(nlp, 8)]).to_disk(path)
    return path


def run(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(docs: Path, bert_dir: Path, tmp_path: Path) -> None:
    result = run(docs, bert_dir, "--output", tmp_path / "out")
    assert result.exit_code == 0
    assert "sees no CUDA GPU" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("quick_collection")
def test_a_failed_test_is_a_failure(docs: Path, bert_dir: Path, tmp_path: Path) -> None:
    """pytest runs real tests with all three outcomes, and all rows are measured on the CPU."""
    tests = tmp_path / "test_three.py"
    tests.write_text(
        "import pytest\n"
        "def test_good_one():\n    pass\n"
        "@pytest.mark.parametrize('i', [1, 2])\n"
        "def test_bad_one(i):\n    assert i == 1\n"
        "def test_other():\n    pytest.skip('no')\n"
    )
    output = tmp_path / "out"
    options = ("--device", "cpu", "--repeats", 1, "--tests", tests, "--output", output)
    result = run(docs, bert_dir, *options)
    assert result.exit_code == 1
    saved = json.loads((output / "gpu.json").read_text())
    assert saved["tests"] == {
        "test_good_one": "passed",
        "test_bad_one[1]": "passed",
        "test_bad_one[2]": "failed",
        "test_other": "skipped",
    }
    titles = [row.title for row in gpu.ROWS if row.ops == "numpy"]
    assert list(saved["rows"])[: len(titles)] == titles
    assert len(saved["rows"]) == (len(gpu.ROWS) if has_cupy_gpu else len(titles))
    for tasks in saved["rows"].values():
        assert tasks["encoding"]["words"] == tasks["training"]["words"] == [8 * 6]
    table = (output / "gpu.md").read_text()
    assert "| bad one | 1 | 1 | 0 |" in table
    assert "| float32, pipes on the CPU | " in table
    assert (gpu.NO_CUPY in table) == (gpu.NO_CUPY in result.output) == (not has_cupy_gpu)


def test_batches_are_those_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nlp = spacy.blank("en")
    batches: list[list[Example]] = []
    monkeypatch.setattr(nlp, "update", lambda batch, **kwargs: batches.append(batch))
    training(PipelineSide(nlp, make_examples(nlp, 2000)), gpu.gpu_config())(1)()
    words = [sum(map(len, batch)) for batch in batches]
    assert sum(words) == 2000 * 6
    assert 4000 <= max(words) <= 4800
