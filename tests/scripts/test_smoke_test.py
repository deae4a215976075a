from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import spacy
from spacy.pipeline import EntityRuler
from spacy.tokens import DocBin

from scripts.smoke_test import (
    CHECK,
    MAX_CHARACTERS,
    SmokeTestError,
    find_wheel,
    first_text,
    main,
    smoke_test,
)

ROOT = Path(__file__).parents[2]


def add_wheel(directory: Path, name: str) -> Path:
    wheel = directory / name / "dist" / f"{name}-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(b"no wheel")
    return wheel


def test_finds_the_one_wheel(tmp_path: Path) -> None:
    wheel = add_wheel(tmp_path, "en_one-0.1.0")
    assert find_wheel(tmp_path) == wheel
    assert find_wheel(tmp_path / "en_one-0.1.0") == wheel


def test_no_wheel_and_several(tmp_path: Path) -> None:
    with pytest.raises(SmokeTestError, match=r"found none\. Build it with"):
        find_wheel(tmp_path)
    add_wheel(tmp_path, "en_one-0.1.0")
    add_wheel(tmp_path, "en_two-0.1.0")
    with pytest.raises(SmokeTestError, match=r"found .*en_one-0\.1\.0.*en_two-0\.1\.0"):
        find_wheel(tmp_path)


def test_sources_and_constraints_must_be_there(tmp_path: Path) -> None:
    wheel = add_wheel(tmp_path, "en_one-0.1.0")
    with pytest.raises(SmokeTestError, match=r"has no setup\.cfg"):
        smoke_test(wheel, project=tmp_path, constraints=None, text="a")
    with pytest.raises(SmokeTestError, match="No constraints file"):
        smoke_test(wheel, project=ROOT, constraints=tmp_path / "none.txt", text="a")


def write_docs(path: Path, *texts: str) -> Path:
    DocBin(docs=list(spacy.blank("de").pipe(texts))).to_disk(path)
    return path


def test_the_text_is_of_the_corpus(tmp_path: Path) -> None:
    path = write_docs(tmp_path / "test.spacy", " ", "Zug fährt. " * 200, "Noch eins.")
    text = first_text(path)
    assert text.startswith("Zug fährt. Zug")
    assert len(text) <= MAX_CHARACTERS
    with pytest.raises(SmokeTestError, match="has no document with text"):
        first_text(write_docs(path, "", "\n"))
    with pytest.raises(SmokeTestError, match="No such file"):
        first_text(tmp_path / "none.spacy")


@pytest.mark.slow
def test_a_broken_wheel_fails_with_what_pip_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_wheel(tmp_path, "en_one-0.1.0")
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), "--project", str(ROOT), "--text", "a"])
    assert "en_one-0.1.0-py3-none-any.whl" in str(stopped.value.code)
    assert "ended with code 1" in str(stopped.value.code)


def test_what_the_wheel_must_not_bring_along_is_found() -> None:
    command = [sys.executable, "-c", CHECK, "en_one", "a", "no_such_module", "spacy"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "must run without spacy, but" in done.stderr


@pytest.mark.slow
def test_a_packaged_pipeline_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Packaged as the project does, with rules in place of weights."""
    nlp = spacy.blank("en")
    ruler = nlp.add_pipe("entity_ruler")
    assert isinstance(ruler, EntityRuler)
    ruler.add_patterns([{"label": "PERSON", "pattern": "Ada"}])
    nlp.to_disk(tmp_path / "pipeline")
    packages = tmp_path / "packages"
    packages.mkdir()
    package = [sys.executable, "-m", "spacy", "package", str(tmp_path / "pipeline"), str(packages)]
    package += ["--name", "smoke", "--version", "0.1.0", "--build", "wheel"]
    subprocess.run(package, check=True, capture_output=True)
    arguments = [str(packages), "--project", str(ROOT), "--without", "torch"]
    corpus = write_docs(tmp_path / "test.spacy", "Ada left.")
    main([*arguments, "--constraints", str(ROOT / "constraints.txt"), "--corpus", str(corpus)])
    printed = capsys.readouterr().out
    assert "Installed en_smoke-0.1.0-py3-none-any.whl and spacy-distil: " in printed
    assert "From the start of the process to the first document: " in printed
    assert printed.count("ents: [('Ada', 'PERSON')]") == 2
