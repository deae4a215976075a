"""scripts.package: a quiet build, and warnings about the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import spacy
from typer.testing import CliRunner

from scripts import package
from spacy_distil.errors import ConfigError
from tests.report.test_pipeline_card import COMPARISON, ROBUSTNESS


def comparison(scores: dict[str, tuple[float, tuple[float, float] | None]]) -> dict[str, Any]:
    """NER F, and its interval, by row."""
    rows = [
        {"name": name, "scores": {"ents_f": {"mean": mean, "interval": interval}}}
        for name, (mean, interval) in scores.items()
    ]
    return {"rows": rows, "teacher": "teacher", "n_docs": 40, "settings": {"level": 0.95}}


ROW = "packaged int8"


def test_rivals_that_score_higher_are_named() -> None:
    (warning,) = package.judge(
        comparison(
            {
                "teacher": (0.9, None),
                "student": (0.39, (0.3, 0.5)),
                "cnn": (0.32, (0.3, 0.4)),
                ROW: (0.30, (0.28, 0.33)),
            }
        ),
        ROW,
    )
    assert warning.startswith("ents_f of the packaged pipeline is 30.0% [28.0%, 33.0%], below that")
    assert "of student 39.0%, cnn 32.0%" in warning
    assert "teacher" not in warning
    assert "too few" not in warning


def test_a_test_set_that_is_too_small_is_named() -> None:
    rows = {"student": (0.39, None), ROW: (0.30, (0.2, 0.41))}
    (warning,) = package.judge(comparison(rows), ROW)
    assert "below that of student 39.0%. This is within the 95% interval: 40 test docum" in warning
    rows["student"] = (0.305, None)  # as good as equal
    (warning,) = package.judge(comparison(rows), ROW)
    assert warning.endswith("30.0% [20.0%, 41.0%]: 40 test documents are too few to say more.")
    rows[ROW] = (0.30, (0.26, 0.34))
    assert package.judge(comparison(rows), ROW) == []
    with pytest.raises(ConfigError, match="no row 'other', but student, packaged int8"):
        package.judge(comparison(rows), "other")


@pytest.mark.parametrize(
    ("teacher", "ours", "told"),
    [
        (0.0, 0.0, "packaged pipeline and of the teacher"),
        (0.9, 0.0, "packaged pipeline"),
        (0.0, 0.01, "teacher"),
        (0.9, 0.01, ""),
    ],
)
def test_a_score_of_zero_is_named(teacher: float, ours: float, told: str) -> None:
    rows = {"teacher": (teacher, None), "cnn": (0.0, None), ROW: (ours, (0.0, 0.0))}
    warnings = package.judge(comparison(rows), ROW)
    assert len(warnings) == bool(told)
    if told:
        assert warnings[0].startswith(f"ents_f of the {told} is 0: nothing is right in 40 test doc")


def run(pipeline: Path, tmp_path: Path, version: str = "0.1.0") -> Any:
    results = tmp_path / "compare"
    results.mkdir(exist_ok=True)
    rows = {"student": (0.39, None), ROW: (0.30, None)}
    found = comparison(rows)
    for row in found["rows"]:
        row |= {key: COMPARISON["rows"][0][key] for key in ("speed", "n_bytes", "n_parameters")}
    settings = {**COMPARISON["settings"], **found["settings"]}
    whole = {**COMPARISON, **found, "settings": settings}
    (results / "compare.json").write_text(json.dumps(whole))
    noisy = {**ROBUSTNESS, "rows": [{**ROBUSTNESS["rows"][0], "name": ROW}]}
    (results / "robustness.json").write_text(json.dumps(noisy))
    app = package.typer.Typer()
    app.command()(package.main)
    options = {"--name": "quiet", "--version": version, "--row": ROW}
    options |= {"--compare": results, "--robustness": results}
    arguments = [str(each) for option in options.items() for each in option]
    return CliRunner().invoke(app, [str(pipeline), str(tmp_path / "packages"), *arguments])


@pytest.mark.slow
def test_the_build_is_quiet_unless_it_fails(tmp_path: Path) -> None:
    spacy.blank("en").to_disk(tmp_path / "pipeline")
    result = run(tmp_path / "pipeline", tmp_path)
    assert result.exit_code == 0, result.output
    wheel = tmp_path / "packages/en_quiet-0.1.0/dist/en_quiet-0.1.0-py3-none-any.whl"
    assert wheel.is_file()
    with ZipFile(wheel) as files:
        (card,) = [name for name in files.namelist() if name.endswith("0.1.0/README.md")]
        assert "# en_quiet" in files.read(card).decode()
        assert "| NER F | 30.0 |" in files.read(card).decode()
        assert "| keyboard | 15% | 92.00 (-3.0 [-4.0, -2.0]) |" in files.read(card).decode()
    assert not (tmp_path / "pipeline" / "README.md").exists()
    printed = " ".join(result.output.split())
    assert "below that of student 39.0%" in printed
    assert len(result.output.splitlines()) < 10
    failed = run(tmp_path / "pipeline", tmp_path, version="not a version")
    assert failed.exit_code != 0
    assert "not a version" in failed.output
    assert "✔" not in failed.output.splitlines()[-1]


def test_a_comparison_must_be_there(tmp_path: Path) -> None:
    spacy.blank("en").to_disk(tmp_path / "pipeline")
    app = package.typer.Typer()
    app.command()(package.main)
    arguments = [tmp_path / "pipeline", tmp_path, "--name", "a", "--version", "1", "--row", ROW]
    options = ["--compare", str(tmp_path), "--robustness", str(tmp_path)]
    result = CliRunner().invoke(app, [*map(str, arguments), *options])
    assert result.exit_code == 1
    printed = " ".join(result.output.split())
    assert "compare.json cannot be read as results of `distil compare`" in printed
    assert "Run it first." in printed
