"""The curves of the benchmark of explanations, and its attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
import typer
from spacy.tokens import DocBin
from typer.testing import CliRunner

from benchmarks.common.results import without_directories
from benchmarks.explanations import __main__ as benchmark
from benchmarks.explanations.attention import Attention
from benchmarks.explanations.curves import SHARES, Curves, draw
from spacy_distil.trust.explanations.explain import explain
from tests.util import SENTENCES, encoder_of, make_nlp, torch_model_of

TEXT = "Ann visited Rome in spring . We like pizza !"


def test_the_curves_are_probabilities_of_shorter_docs(torch_pipeline: Path) -> None:
    nlp = spacy.load(torch_pipeline)
    doc = nlp.make_doc(TEXT)
    found: Any = explain(nlp, doc, "cats")
    order = [2, 0, 1, 9, 8, 7, 6, 5, 4, 3]
    curves = draw(nlp, doc, found.target, order)
    words = TEXT.split()
    label = found.target.label
    for i in range(len(SHARES) - 1):
        left = " ".join(word for j, word in enumerate(words) if j not in order[:i])
        assert curves.deletion[i] == pytest.approx(nlp(left).cats[label], rel=1e-3)
        alone = " ".join(word for j, word in enumerate(words) if j in order[: i + 1])
        assert curves.insertion[i + 1] == pytest.approx(nlp(alone).cats[label], rel=1e-3)
    assert curves.deletion[0] == pytest.approx(curves.insertion[-1], rel=1e-4)
    assert curves.deletion[-1] == pytest.approx(curves.insertion[0], rel=1e-4)


def test_areas() -> None:
    falling = np.linspace(1, 0, 11)
    assert Curves(falling, np.ones(11)).areas == pytest.approx((0.5, 1.0))


def test_attention_is_that_of_the_model(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["textcat"])
    doc = nlp.make_doc("Ann visited unbelievable Rome")
    found = Attention(encoder_of(nlp))(doc)
    encoded, (batch,) = (lambda pair: (pair[0], [*pair[1]]))(encoder_of(nlp).prepare([doc]))
    module: Any = torch_model_of(nlp)
    with torch.no_grad():
        ids = torch.from_numpy(batch.ids)
        output = module(input_ids=ids, output_attentions=True)
    weights = output.attentions[-1][0].mean(dim=0)[1:-1].mean(dim=0)[1:-1].numpy()
    expected = [weights[a:b].sum() for a, b in zip(encoded.first, encoded.last, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert 0 < found.sum() < 1


def run(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(benchmark.main)
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_a_run(torch_pipeline: Path, onnx_pipeline: Path, tmp_path: Path) -> None:
    nlp = spacy.load(torch_pipeline)
    texts = [TEXT, "We like unbelievable pizza in Oslo .", "too short", *SENTENCES]
    DocBin(docs=[nlp.make_doc(text) for text in texts]).to_disk(tmp_path / "test.spacy")
    result = run(torch_pipeline, tmp_path / "test.spacy", "--output", tmp_path, "--limit", 5)
    assert result.exit_code == 0, result.output
    table = (tmp_path / "explanations.md").read_text(encoding="utf8")
    data = json.loads((tmp_path / "explanations.json").read_text(encoding="utf8"))
    orders = ["integrated gradients", "occlusion", "attention", "random order"]
    assert [*data["areas"]] == orders
    assert data["n_docs"] == 4
    assert all(f"| {name} | 0." in table for name in orders)
    assert "Measured on" in table
    assert data["command"] in table
    means = {name: np.mean(own, axis=0) for name, own in data["areas"].items()}
    for name in orders[:2]:
        assert means[name][0] < means["random order"][0]
        assert means[name][1] > means["random order"][1]
    result = run(onnx_pipeline, tmp_path / "test.spacy", "--limit", 2)
    assert result.exit_code == 0, result.output
    assert "integrated" not in result.output
    assert "occlusion" in result.output


def test_mistakes(torch_pipeline: Path, bert_dir: Path, tmp_path: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"])
    nlp.to_disk(tmp_path / "tagger")
    DocBin(docs=[nlp.make_doc("too short")]).to_disk(tmp_path / "test.spacy")
    result = run(tmp_path / "tagger", tmp_path / "test.spacy")
    assert result.exit_code == 1
    assert "no pipe for 'cats'" in result.output
    result = run(torch_pipeline, tmp_path / "test.spacy")
    assert result.exit_code == 1
    assert "No document has 5 to 1,000 tokens" in " ".join(result.output.split())


def test_commands_name_no_directory_of_this_machine() -> None:
    command = "python -m benchmarks.x /home/me/a b/c.spacy --output '/x y/z' 'my net=/d/e' n=f/g"
    expected = "python -m benchmarks.x a b/c.spacy --output z 'my net=e' n=f/g"
    assert without_directories(command) == expected
