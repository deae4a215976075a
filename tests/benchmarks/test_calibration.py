"""The benchmark of calibration, on a small tagger."""

from __future__ import annotations

import json
from pathlib import Path

import spacy
import typer
from spacy.tokens import DocBin
from spacy.util import fix_random_seed
from typer.testing import CliRunner

from benchmarks.calibration import __main__ as benchmark
from tests.util import adam, initialize_nlp, make_examples, make_nlp


def test_a_run(bert_dir: Path, tmp_path: Path) -> None:
    fix_random_seed(0)
    nlp = make_nlp(bert_dir, ["tagger"], initialize=False)
    initialize_nlp(nlp)
    for _ in range(5):
        nlp.update(make_examples(nlp, 32), sgd=adam(0.01))
    nlp.to_disk(tmp_path / "nlp")
    for name, start in (("dev", 40), ("test", 80)):
        docs = [each.reference for each in make_examples(spacy.blank("en"), 30, start=start)]
        DocBin(docs=docs).to_disk(tmp_path / f"{name}.spacy")
    app = typer.Typer()
    app.command()(benchmark.main)
    pipelines = [f"--pipeline={name}={tmp_path / 'nlp'}" for name in ("one", "two")]
    files = [str(tmp_path / f"{name}.spacy") for name in ("dev", "test")]
    result = CliRunner().invoke(app, [*files, *pipelines, "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "out" / "calibration.json").read_text())["pipelines"]
    (one,), (two,) = (data[name]["pipes"] for name in ("one", "two"))
    assert one == two
    assert one["before"]["accuracy"] == one["after"]["accuracy"]
    markdown = (tmp_path / "out" / "calibration.md").read_text()
    lines = markdown.splitlines()
    before = next(i for i, line in enumerate(lines) if line.startswith("| two | before |"))
    for i, when in enumerate(("before", "after")):
        assert f"{100 * one[when]['ece']['mean']:.2f} [" in lines[before + i]
