from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import spacy
from spacy.tokens import DocBin
from typer.testing import CliRunner

from spacy_distil.cli import distil_cli
from spacy_distil.cli.options import TxtDocumentsChoice
from spacy_distil.text.plain_text import TxtDocuments
from tests.report.markup import Markup
from tests.util import make_examples


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Annotated docs and texts in the working directory."""
    examples = make_examples(spacy.blank("en"), 12, start=100)
    docs = [each.reference for each in examples]
    DocBin(docs=docs, store_user_data=True).to_disk(tmp_path / "dev.spacy")
    (tmp_path / "texts.txt").write_text("\n".join(doc.text for doc in docs))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str | Path) -> tuple[int, str]:
    """Exit status and output, its lines joined: messages are wrapped to the terminal's width."""
    result = CliRunner().invoke(distil_cli, ["quantize", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_quantize_prints_and_writes(
    torch_pipeline: Path, directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, output = run(
        torch_pipeline, "int8", "--corpus", "dev.spacy", "--report", "metrics/int8.json"
    )
    assert status == 0, (output, capfd.readouterr())
    for title in (
        "Agreement of the candidate with the original",
        "candidate alone",
        "Token vectors",
        "max difference mean difference",
        "Scores against gold, %",
        "Speed and size",
        "words/s",
        "MB on disk",
        "Original and int8 candidate on dev.spacy",
        "Saved the pipeline to int8",
    ):
        assert title in output
    for absent in ("Error of the token vectors with one layer", "Pruned vocabulary", "--corpus"):
        assert absent not in output
    report = json.loads((directory / "metrics" / "int8.json").read_text())
    assert (report["precision"], report["documents"], report["pruning"]) == (
        "int8",
        "dev.spacy",
        None,
    )
    assert report["cpu"]
    assert f"{report['cpu']}" in output
    agreement = report["agreement"]
    assert {one["pipe"] for one in agreement["measures"]} == {"tagger", "ner", "textcat"}
    assert agreement["candidate_scores"].keys() >= {"tag_acc", "ents_f", "cats_macro_f"}
    assert agreement["candidate_vectors_alone"]["max"] == 0
    assert spacy.load("int8").pipe_names == ["transformer", "tagger", "ner", "textcat"]


def test_all_options(torch_pipeline: Path, directory: Path) -> None:
    (directory / "out").mkdir()
    (directory / "out" / "meta.json").write_text("{}")
    status, output = run(
        torch_pipeline, "out", "--force", "--precision", "int8", "--corpus", "texts.txt",
        "--limit", "6", "--min-agreement", "0.9", "--max-fp32-layers", "1", "--reduced-range",
        "--prune-vocab", "texts.txt", "--vocab-size", "200", "--batch-size", "4",
        "--report", "report.json", "--page", "pages/quantize.html",
    )  # fmt: skip
    assert status == 0, output
    for title in ("Pruned vocabulary", "pieces per word", "Original and int8 candidate on texts"):
        assert title in output
    report = json.loads((directory / "report.json").read_text())
    page = Markup((directory / "pages" / "quantize.html").read_text())
    for title in ("Agreement of the candidate with the original", "Pruned vocabulary"):
        assert title in page.texts
    assert any("Original and int8 candidate on texts" in text for text in page.texts)
    assert report["reduced_range"] is True
    assert report["pruning"]["n_after"] == 200
    assert (report["agreement"]["n_docs"], report["agreement"]["batch_size"]) == (6, 4)
    section = json.loads((directory / "out" / "transformer" / "config.json").read_text())
    assert section["spacy_distil"]["reduced_range"] is True


def test_without_a_corpus_it_says_what_that_means(torch_pipeline: Path, directory: Path) -> None:
    status, output = run(torch_pipeline, "fp32", "--precision", "fp32", "--page", "page.html")
    assert status == 0
    assert "fp32 candidate on spaCy's example sentences" in output
    warning = "Checked on a few sentences alone: name documents of yours with --corpus."
    assert warning in output
    page = Markup((directory / "page.html").read_text())
    assert warning in page.texts
    assert page.count("figure") == 0, "no layer was chosen"


def test_errors_say_what_to_do(torch_pipeline: Path, onnx_pipeline: Path, directory: Path) -> None:
    for arguments, message in (
        ((onnx_pipeline, "out"), "runs on ONNX Runtime already. Start from the pipeline that it"),
        (("none", "out"), "No pipeline 'none'"),
        ((torch_pipeline, "dev.spacy"), "dev.spacy exists. Choose another directory"),
        ((torch_pipeline, "out", "--corpus", "none.txt"), "No documents at none.txt"),
        ((torch_pipeline, "out", "--vocab-size", "9"), "name documents with that option too"),
    ):
        status, output = run(*arguments)
        assert status == 1
        assert message in output
        assert "Traceback" not in output
        assert not (directory / "out").exists()
    assert run(torch_pipeline, "out", "--precision", "int4")[0] == 2


def test_the_command_line_offers_every_division_of_text() -> None:
    assert [choice.value for choice in TxtDocumentsChoice] == list(get_args(TxtDocuments))
