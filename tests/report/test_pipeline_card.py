"""Model cards of pipelines: what they say comes from the records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import spacy
from huggingface_hub import ModelCard
from spacy.cli._util import app
from spacy.tokens import Doc
from spacy.training import Example
from typer.testing import CliRunner

import spacy_distil.cli  # noqa: F401 (registers the commands)
from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.report.pipeline_card import CardRecords, read_results, write_card

SPEED = {"words_per_second": 12345.6}
MACHINE = {
    "cpu": "CPU of a test",
    "cores": 2,
    "logical_cores": 2,
    "memory_bytes": 2**34,
    "system": "Linux x86_64",
    "python": "3.11",
    "versions": {"spacy": "3.8"},
}
COMPARISON: dict[str, Any] = {
    "test": "corpus/test.spacy",
    "n_docs": 316,
    "teacher": "big",
    "date": "2026-01-02T03:04:05",
    "machine": MACHINE,
    "settings": {"threads": 2},
    "rows": [
        {
            "name": "small",
            "scores": {
                "tag_acc": {"mean": 0.9543, "interval": [0.95, 0.96]},
                "ents_p": {"mean": 0.5, "interval": None},
            },
            "reliability": {},
            "retention": {"tag_acc": {"value": 0.998, "interval": None}},
            "speed": SPEED,
            "n_bytes": 12_300_000,
            "n_parameters": 4_500_000,
        }
    ],
}
ROBUSTNESS: dict[str, Any] = {
    "test": "/home/me/test.spacy",
    "n_docs": 12,
    "verdicts": ["12 documents tell little."],
    "rows": [
        {
            "name": "small",
            "clean": {"tag_acc": {"mean": 0.95}},
            "noisy": [
                {
                    "noise": {"kind": "keyboard", "rate": 0.15, "changed": 0.07},
                    "scores": {"tag_acc": {"mean": 0.92}},
                    "drops": {"tag_acc": [0.03, [0.02, 0.04]]},
                },
                {
                    "noise": {"kind": "swap", "rate": 0.15, "changed": 0.07},
                    "scores": {"tag_acc": {"mean": 0.95}},
                    "drops": {"tag_acc": [0.0, None]},
                },
            ],
        }
    ],
}
RELIABILITY = {
    "what": "tokens",
    "n": 100,
    "accuracy": 0.9,
    "confidence": 0.95,
    "ece": {"mean": 0.05, "interval": None},
    "ece_by_chance": 0.01,
}
CALIBRATION: dict[str, Any] = {
    "pipes": [
        {
            "pipe": "tagger",
            "before": RELIABILITY,
            "after": {
                **RELIABILITY,
                "confidence": 0.901,
                "ece": {"mean": 0.0123, "interval": [0.01, 0.0149]},
            },
        }
    ]
}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    nlp = spacy.blank("en")
    nlp.add_pipe("tagger")
    doc = Doc(nlp.vocab, words=["dogs", "bark"], tags=["NNS", "VBP"])
    nlp.initialize(lambda: [Example(nlp.make_doc(doc.text), doc)])
    nlp.config["paths"]["train"] = "/home/me/secret/train.spacy"
    nlp.to_disk(tmp_path / "nlp")
    return tmp_path / "nlp"


def metadata(card: str) -> dict[str, Any]:
    """Read the block at the top as the hub does."""
    found: dict[str, Any] = ModelCard(card).data.to_dict()
    return found


def test_a_card_with_all_records(pipeline: Path) -> None:
    records = CardRecords(COMPARISON, ROBUSTNESS, CALIBRATION, row="small")
    card = write_card(pipeline, records, licence="mit", limits="It fails on poems.").read_text()
    block = metadata(card)
    assert (block["license"], block["language"]) == ("mit", "en")
    assert "token-classification" in block["tags"]
    (result,) = block["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.9543
    assert "| XPOS acc | 95.43 | 95.0 to 96.0 | 99.8 |" in card
    assert "12,346 words/s on 2 CPU threads; 12.3 MB on disk" in card
    assert "Measured on CPU of a test" in card
    assert "| tagger | 100 tokens | 90.00 | 90.10 | 1.23 [1.00, 1.49] | 1.00 | 5.00 |" in card
    assert "| none |  | 95.00 |" in card
    assert "| keyboard | 15% | 92.00 (-3.0 [-4.0, -2.0]) |" in card
    assert "| swap | 15% | 95.00 (0.0) |" in card
    assert "Scores in % on 12 documents of test.spacy" in card
    assert "12 documents tell little." in card
    assert "It fails on poems." in card
    assert "Not measured" not in card
    assert "train: train.spacy" in card
    assert "/home/me" not in card
    meta = json.loads((pipeline / "meta.json").read_text())
    assert meta["license"] == "mit"
    assert meta["description"].startswith("English pipeline")
    assert spacy.load(pipeline).pipe_names == ["tagger"]


def test_it_says_what_nobody_has_measured(pipeline: Path) -> None:
    card = write_card(pipeline, CardRecords()).read_text()
    assert "Not measured: scores and speed, calibration, robustness to typos" in card
    assert "Nobody has stated it." in card
    assert "license" not in metadata(card)


def test_mistakes(pipeline: Path, tmp_path: Path) -> None:
    write_card(pipeline, CardRecords())
    with pytest.raises(ConfigError, match=r"README\.md exists. Replace it with --force"):
        write_card(pipeline, CardRecords())
    write_card(pipeline, CardRecords(), force=True)
    with pytest.raises(ConfigError, match=r"no row 'other'\. Its rows: 'small'"):
        write_card(pipeline, CardRecords(COMPARISON, row="other"), force=True)
    with pytest.raises(ConfigError, match=r"is no saved pipeline: it has no meta\.json"):
        write_card(tmp_path, CardRecords())
    (tmp_path / "compare.json").write_text("[]")
    with pytest.raises(CorpusError, match="expected the results of `distil compare`"):
        read_results(tmp_path, "compare")
    (tmp_path / "compare.json").write_text(json.dumps(ROBUSTNESS))
    with pytest.raises(CorpusError, match=r"expected the results of `distil compare`.* scores"):
        read_results(tmp_path, "compare")
    (tmp_path / "calibrate.json").write_text('{"pipes": [{"pipe": "tagger"}]}')
    with pytest.raises(CorpusError, match="have after, before, pipe"):
        read_results(tmp_path, "calibrate")
    (pipeline / "meta.json").write_text("{")
    with pytest.raises(ConfigError, match=r"meta\.json is damaged"):
        write_card(pipeline, CardRecords(), force=True)
    (pipeline / "meta.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"meta\.json has no lang, name and version"):
        write_card(pipeline, CardRecords(), force=True)
    (pipeline / "config.cfg").unlink()
    with pytest.raises(ConfigError, match=r"it has no config\.cfg"):
        write_card(pipeline, CardRecords(), force=True)
    with pytest.raises(CorpusError, match="cannot be read as results of `distil robustness`"):
        read_results(tmp_path / "missing.json", "robustness")


def test_the_command_and_the_package(pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text(json.dumps(COMPARISON))
    arguments = ["distil", "card", str(pipeline), "--compare", str(tmp_path), "--row", "small"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    card = (pipeline / "README.md").read_text()
    arguments = ["package", str(pipeline), str(tmp_path), "--name", "small", "--build", "none"]
    result = CliRunner().invoke(app, [*arguments, "--version", "1.0.0"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "en_small-1.0.0" / "README.md").read_text() == card


def test_results_of_real_runs(pipeline: Path) -> None:
    """The records above are short ones. These are whole."""
    results = Path(__file__).parents[2] / "benchmarks"
    comparison = read_results(results / "project" / "results", "compare")
    card = write_card(pipeline, CardRecords(comparison, row="distilled int8")).read_text()
    assert "| XPOS acc | 95." in card
    assert " words/s on 2 CPU threads" in card
    robustness = read_results(results / "noise" / "results", "robustness")
    records = CardRecords(robustness=robustness, row="taught on noise")
    card = write_card(pipeline, records, force=True).read_text()
    assert "| keyboard | 15% | 94.53 (-1.7 [-1.9, -1.5]) | 93.81 (-1.7 [" in card
    calibration = json.loads((results / "calibration" / "results" / "ewt.json").read_text())
    records = CardRecords(calibration=calibration["pipelines"]["taught, int8"])
    card = write_card(pipeline, records, force=True).read_text()
    assert "| tagger | 24,653 tokens | 96.04 | 95.95 | 0.48 [0.28, 0.68] | 0.27 | 1.15 |" in card
