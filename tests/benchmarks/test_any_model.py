"""Processes of their own, because these benchmarks pin a process to its cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from spacy.tokens import DocBin

from tests.util import SENTENCES, make_nlp, write_encoder

REPO = Path(__file__).parents[2]
TWEETS = (
    "Ann\tB-PER\nvisited\tO\nNew\tB-LOC\nYork\tI-LOC\n\n"
    "We\tO\nlike\tO\nOslo\tB-LOC\n;\tO\n@pizza\tO\n\n"
)


def run(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", f"benchmarks.any_model.{module}", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def test_published(tmp_path: Path) -> None:
    nlp = make_nlp(write_encoder(tmp_path / "encoder", "bert"), ["tagger", "ner"])
    nlp.to_disk(tmp_path / "nlp")
    DocBin(docs=[nlp(text) for text in SENTENCES]).to_disk(tmp_path / "held.spacy")
    options = ["--repeats", "2", "--output", "out"]
    result = run("published", "nlp", "nlp", "held.spacy", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    data = json.loads((tmp_path / "out" / "published.json").read_text())
    assert data["agreement"]["tag_acc"] == data["agreement"]["ents_f"] == 100
    assert [*data["seconds"]] == ["All pipes"]
    table = (tmp_path / "out" / "published.md").read_text()
    # The tokenizer of the encoder is uncased.
    assert "| fine-grained tag | 100.0 | 100.0 |" in table
    assert "| student, int8, batches of 64 |" in table


def test_classifier(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder", "bert")
    (tmp_path / "btc").mkdir()
    for section in "abegfh":
        (tmp_path / "btc" / f"{section}.conll").write_text(TWEETS)
    # Enough epochs to learn the tweets: random weights need not agree in int8.
    options = ["--repeats", "1", "--epochs", "500", "--output", "out"]
    result = run("classifier", "btc", "encoder", "work", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    data = json.loads((tmp_path / "out" / "classifier_1_threads.json").read_text())
    assert (data["tweets"], data["alike"]) == (2, 1)
    learned = {"same": 1, "same_of_all": 2, "f": 100.0}
    assert data["converted, float32"] == data["converted, int8"] == learned
    table = (tmp_path / "out" / "classifier_1_threads.md").read_text()
    assert "| converted, int8 | " in table


@pytest.mark.skipif(find_spec("spacy_accelerate") is not None, reason="the rival is installed")
def test_accelerate_needs_the_rival(tmp_path: Path) -> None:
    (tmp_path / "docs.spacy").write_bytes(b"")
    result = run("accelerate", "docs.spacy", "work", cwd=tmp_path)
    assert result.returncode == 1
    printed = " ".join((result.stdout + result.stderr).split())
    assert "pip install --no-deps spacy-accelerate" in printed
