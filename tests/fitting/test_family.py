"""Families: one pipeline with several students, of which one is loaded for a budget."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.cli._util import app
from typer.testing import CliRunner

import spacy_distil
from spacy_distil.errors import ConfigError
from spacy_distil.fitting import family as family_module
from spacy_distil.fitting.candidates import Candidate
from spacy_distil.fitting.costs import Costs
from spacy_distil.fitting.family import find_directory, make_texts, write_family
from spacy_distil.fitting.results import Student
from tests.util import make_nlp


@pytest.fixture(scope="module")
def pipelines(bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("members")
    for name in ("good", "small"):
        nlp = make_nlp(bert_dir, ["tagger"])
        nlp.meta["name"] = name
        nlp.to_disk(directory / name)
    return {name: directory / name for name in ("good", "small")}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(family_module, "user_cache_path", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache"


@pytest.fixture
def family(pipelines: dict[str, Path], tmp_path: Path) -> Path:
    students = {
        "good": Student(Candidate(2), Costs(20, 100, 2, 3, 300), history={8: 0.9}),
        "small": Student(Candidate(1), Costs(10, 200, 1, 2, 200), history={8: 0.8}),
    }
    write_family(tmp_path / "family", pipelines, students, words_per_document=30)
    return tmp_path / "family"


def times(monkeypatch: pytest.MonkeyPatch, **rates: float) -> list[str]:
    """Let members have these speeds on this machine. RETURNS: the members that are timed."""
    timed: list[str] = []

    def time(nlp: Any, words_per_document: float) -> dict[str, float]:
        assert words_per_document == 30
        name = nlp.meta["name"]
        timed.append(name)
        ms = 1000 / rates[name]
        return {"words_per_second": rates[name], "p50_ms": ms, "p95_ms": 2 * ms}

    monkeypatch.setattr(family_module, "time_pipeline", time)
    return timed


def test_a_family_is_a_pipeline(family: Path) -> None:
    assert spacy.load(family).meta["name"] == "good"
    assert spacy_distil.load(family).meta["name"] == "good"
    assert spacy_distil.load(family, disable=["tagger"]).pipe_names == ["transformer"]


def test_the_best_that_fits_here(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = times(monkeypatch, good=500, small=1000)
    assert spacy_distil.load(family, words_per_second=400).meta["name"] == "good"
    assert timed == ["good"], "the others need no timing"
    assert spacy_distil.load(family, words_per_second=600).meta["name"] == "small"
    assert spacy_distil.load(family, latency_ms=1.5).meta["name"] == "small"
    assert spacy_distil.load(family, latency_ms=2.5).meta["name"] == "good"
    assert spacy_distil.load(family, latency_ms=2.5, percentile=95).meta["name"] == "small"
    assert timed == ["good", "small"], "times are kept"
    with pytest.raises(ConfigError) as error:
        spacy_distil.load(family, words_per_second=2000)
    for part in ("words_per_second = 2000 on this machine", "small (words_per_second 1,000.0)"):
        assert part in str(error.value)


def test_size_and_memory_need_no_timing(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = times(monkeypatch, good=1, small=1)
    assert spacy_distil.load(family, size_mb=15).meta["name"] == "small"
    assert spacy_distil.load(family, memory_mb=400).meta["name"] == "good"
    assert timed == []
    with pytest.raises(ConfigError, match=r"fits size_mb = 5 .*small \(size_mb 10\.0\)"):
        spacy_distil.load(family, size_mb=5)
    with pytest.raises(ConfigError, match="fits words_per_second = 1, size_mb = 5"):
        spacy_distil.load(family, size_mb=5, words_per_second=1)
    assert timed == [], "what is too large is not timed"


def test_times_are_of_a_machine_and_of_versions(
    family: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = times(monkeypatch, good=500, small=1000)
    spacy_distil.load(family, words_per_second=400)
    monkeypatch.setattr(family_module, "cpu_model", lambda: "another CPU")
    spacy_distil.load(family, words_per_second=400)
    monkeypatch.setattr(family_module, "_version", lambda name: "99")
    spacy_distil.load(family, words_per_second=400)
    assert timed == ["good"] * 3
    files = [*cache.rglob("*.json")]
    assert len(files) == 3
    # A damaged file is measured again, and so is a home that cannot be written to.
    for file in files:
        file.write_text("{")
    spacy_distil.load(family, words_per_second=400)
    assert len(timed) == 4
    monkeypatch.setattr(family_module, "user_cache_path", lambda name: family / "meta.json" / name)
    spacy_distil.load(family, words_per_second=400)
    assert len(timed) == 5


def test_real_times(family: Path) -> None:
    assert spacy_distil.load(family, words_per_second=1, latency_ms=10_000).meta["name"] == "good"
    nlp = spacy.load(family)
    texts = make_texts(nlp, 30)
    lengths = [len(nlp.make_doc(text)) for text in texts]
    assert sum(lengths) >= 4_000
    assert 30 <= sum(lengths) / len(lengths) <= 50


def test_a_package(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["package", str(family), str(tmp_path), "--name", "kin", "--version", "1.0.0"]
    result = CliRunner().invoke(app, [*arguments, "--build", "none"])
    assert result.exit_code == 0, result.output
    package = tmp_path / "en_kin-1.0.0" / "en_kin"
    root = package / "en_kin-1.0.0"
    assert json.loads((root / "family.json").read_text())["members"][1]["path"] == "members/small"
    assert (root / "members" / "small" / "meta.json").is_file()
    # As its setup.py does.
    shutil.copy(tmp_path / "en_kin-1.0.0" / "meta.json", package)
    monkeypatch.syspath_prepend(str(tmp_path / "en_kin-1.0.0"))
    monkeypatch.setattr(family_module, "is_package", lambda name: name == "en_kin")
    monkeypatch.setattr(family_module, "check_pipeline", lambda name: None)
    assert find_directory("en_kin") == root
    assert spacy_distil.load("en_kin", size_mb=15).meta["name"] == "small"


def test_mistakes(family: Path, pipelines: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no family of students: it has no family\.json"):
        spacy_distil.load(pipelines["good"], latency_ms=2)
    with pytest.raises(ConfigError, match="latency_ms = 0: expected a number above 0"):
        spacy_distil.load(family, latency_ms=0)
    with pytest.raises(ConfigError, match="percentile = 99: expected 50 or 95"):
        spacy_distil.load(family, latency_ms=1, percentile=99)  # type: ignore[arg-type]
    for damaged in ("{", "[]", '{"members": []}', '{"members": [{"name": "a"}]}'):
        (family / "family.json").write_text(damaged)
        with pytest.raises(ConfigError, match="is damaged"):
            spacy_distil.load(family, latency_ms=1)
    with pytest.raises(ConfigError, match="none"):
        spacy_distil.load(tmp_path / "none")
