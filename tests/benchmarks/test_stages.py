from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import spacy
from spacy.tokens import DocBin

from tests.util import SENTENCES, make_nlp, write_encoder

REPO = Path(__file__).parents[2]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    encoder = write_encoder(tmp_path / "encoder", "bert")
    nlp = make_nlp(encoder, ["tagger"])
    nlp.to_disk(tmp_path / "nlp")
    DocBin(docs=[nlp.make_doc(text) for text in SENTENCES]).to_disk(tmp_path / "docs.spacy")
    blank = spacy.blank("en")
    blank.add_pipe("sentencizer")
    blank.to_disk(tmp_path / "blank")
    # A process of its own, because it pins the process to a core.
    return [sys.executable, "-m", "benchmarks.stages", "ours=nlp", "other=blank", "docs.spacy"]


def test_stages(command: list[str], tmp_path: Path) -> None:
    options = ["--repeats", "2", "--batch-size", "2", "--words", "3", "--output", "out"]
    environment = {"PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1"}
    subprocess.run([*command, *options], cwd=tmp_path, env=environment, check=True, timeout=300)
    rounds = json.loads((tmp_path / "out" / "stages.json").read_text())["rounds"]
    ours = ["transformer: pieces", "transformer: vectors", "transformer: annotate"]
    assert [*rounds["ours"][1]] == [*ours, "tagger: predict", "tagger: annotate"]
    assert [*rounds["other"][1]] == ["sentencizer: annotate"]
    assert all(seconds > 0 for stages in rounds["ours"] for seconds in stages.values())
    table = (tmp_path / "out" / "stages.md").read_text()
    assert table.count("| all |") == 2
    assert "| pipeline | 3 words, p50 | 3 words, p95 | whole documents, p50 |" in table


def test_arguments(command: list[str], tmp_path: Path) -> None:
    command[3] = "nlp"
    result = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(REPO)}, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "expected NAME=PIPELINE, once or more" in result.stdout + result.stderr
