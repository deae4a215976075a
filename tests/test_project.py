"""project.yml, the configs, the README and the page on the project belong together."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import spacy
import srsly
from thinc.api import Config
from weasel.cli.document import project_document
from weasel.util import load_project_config

from project.training import NER, configure
from scripts.quantize import BEST
from spacy_distil.distillation.encoder.config import load_config
from spacy_distil.distillation.pipeline.config import StudentSettings
from spacy_distil.export.quantize import PRECISIONS

ROOT = Path(__file__).parents[1]
PROJECT = load_project_config(ROOT)
COMMANDS = {command["name"]: command for command in PROJECT["commands"]}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_runs_is_among_its_dependencies(name: str) -> None:
    """weasel runs a command again when a dependency has changed: also when its code has."""
    command = COMMANDS[name]
    for line in command["script"]:
        for module in re.findall(r"-m scripts\.(\w+)", line):
            assert f"scripts/{module}.py" in command["deps"]
            assert (ROOT / "scripts" / f"{module}.py").is_file()
        for path in re.findall(r"\bconfigs/\w+\.cfg", line.replace("/configs/", "/")):
            assert path in command["deps"]


def test_every_dependency_is_committed_or_made_before() -> None:
    made: set[str] = set()
    for name in PROJECT["workflows"]["all"]:
        for dep in COMMANDS[name].get("deps", []):
            known = (ROOT / dep).exists() and not dep.startswith(("assets", "training", "metrics"))
            assert known or any(f"{dep}/".startswith(f"{o}/") or o.startswith(dep) for o in made)
        made.update(COMMANDS[name].get("outputs", []))


def test_nothing_is_downloaded_unasked() -> None:
    assert all(asset["extra"] for asset in PROJECT["assets"])


@pytest.mark.parametrize("name", ["train.cfg", "pipeline.cfg", "cnn.cfg"])
def test_training_configs_are_whole(name: str) -> None:
    config = spacy.util.load_config(
        ROOT / "configs" / name,
        overrides={"paths.train": "a", "paths.dev": "b"}
        | ({} if name == "cnn.cfg" else {"paths.encoder": "c"}),
        interpolate=True,
    )
    nlp = spacy.util.load_model_from_config(config, auto_fill=True)
    assert nlp.pipe_names[1:] == ["morphologizer", "tagger", "ner", "textcat"]
    assert config["training"]["batcher"]["discard_oversize"] is False


def filled(name: str) -> Config:
    """One of the configs, fitted to a corpus and completed by spaCy."""
    layers = dict.fromkeys(("pos", "tag", "ents", "cats", "cats_exclusive"), True)
    summary = {"lang": "en", "layers": layers, "scored": layers}
    config = spacy.util.load_config(ROOT / "configs" / name, interpolate=False)
    return spacy.util.load_model_from_config(configure(config, summary), auto_fill=True).config


def test_the_student_is_configured_as_the_teacher() -> None:
    """But for its distillation. (tests/cli tests that both are as `init-config` writes them.)"""
    teacher, student = filled("train.cfg"), filled("pipeline.cfg")
    assert student.pop("distillation")
    assert student["corpora"].pop("text")
    for config in (teacher, student):
        del config["paths"], config["training"]["logger"]
    assert student == teacher


def test_the_cnn_is_configured_as_the_transformer() -> None:
    """But for its encoder, for the size and number of its steps, and for its learning rate, which
    are spaCy's own.
    """
    transformer, cnn = filled("train.cfg"), filled("cnn.cfg")
    for config in (transformer, cnn):
        del config["nlp"]["pipeline"][0], config["paths"]
        del config["components"]["transformer" if config is transformer else "tok2vec"]
        del config["training"]["max_steps"], config["training"]["batcher"]["size"]
        del config["training"]["optimizer"]["learn_rate"], config["training"]["logger"]
        for component in config["components"].values():
            del component["model"]["tok2vec"]
    assert cnn["components"]["ner"]["model"].pop("use_upper") is True
    assert transformer["components"]["ner"]["model"].pop("use_upper") is False
    assert cnn == transformer


def test_distil_config_is_valid() -> None:
    overrides = {"corpus.train": ["text.txt"]}
    assert set(load_config(ROOT / "configs" / "encoder.cfg", overrides).objectives) == {
        "soft_targets",
        "masked_lm",
        "cosine",
    }


def test_the_page_on_the_project_is_up_to_date(tmp_path: Path) -> None:
    """`python -m spacy project document --output docs/project.md` changes nothing."""
    fresh = tmp_path / "project.md"
    project_document(ROOT, fresh)
    marker = re.compile(r"<!-- WEASEL: .* START .*?<!-- WEASEL: .*? END [^>]*>", re.DOTALL)
    pages = (ROOT / "docs" / "project.md", fresh)
    documented, expected = (marker.search(path.read_text(encoding="utf8")) for path in pages)
    assert documented is not None
    assert expected is not None
    assert documented.group() == expected.group()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf8")
    command = next(line for line in readme.splitlines() if " -m pytest" in line)
    setup, _, test = command.rpartition(" && ")
    assert test in ci
    assert setup.split("-c ")[1] in ci


def test_ci_sees_every_step_skipped_that_has_an_output() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf8")
    steps = re.search(r"^for step in (.*); do$", ci, re.MULTILINE)
    assert steps is not None
    assert set(steps.group(1).split()) == {
        name for name in PROJECT["workflows"]["all"] if COMMANDS[name].get("outputs")
    }


def test_what_is_packaged_is_quantized_and_compared() -> None:
    """It is the best of the students, and its seeds are compared."""
    quantized = "training/sample/quantized"
    assert quantized in COMMANDS["quantize"]["outputs"]
    (package,) = COMMANDS["package"]["script"]
    assert f"scripts.package {quantized}/best " in package
    assert package.endswith(
        "--compare metrics/sample/compare --robustness metrics/sample/robustness "
        "--row 'packaged int8'"
    )
    robustness = shlex.split(COMMANDS["robustness"]["script"][0])
    assert f"packaged int8={quantized}/best" in robustness
    assert f" {quantized} " in " ".join(COMMANDS["evaluate"]["script"])
    compare = shlex.split(COMMANDS["compare"]["script"][0])
    rows = [after for before, after in pairwise(compare) if before == "--pipeline"]
    assert f"packaged int8={quantized}/seed-*/model-best" in rows
    quantize = COMMANDS["quantize"]["script"][0]
    for name, step in (("distilled", "distil-pipeline"), ("student", "train-student")):
        (directory,) = COMMANDS[step]["outputs"]
        assert f"{name}={directory}/seed-*/model-best" in rows
        assert f"--from {name}={directory} " in quantize
    assert "--without torch --without transformers" in COMMANDS["smoke-test"]["script"][0]


def test_the_first_step_knows_the_language() -> None:
    """It warns if the teacher's card names others."""
    assert PROJECT["workflows"]["all"][0] == "assets"
    assert " --lang en " in COMMANDS["assets"]["script"][0]


def test_the_vocabulary_is_pruned_in_both_distillations() -> None:
    for name, setting in (
        ("distil-encoder", "--student.vocabulary.size"),
        ("distil-pipeline", "--distillation.student.vocabulary.size"),
    ):
        assert f" {setting} null" in COMMANDS[name]["script"][-1]


def test_every_training_is_long_enough_for_small_data() -> None:
    for name in ("train-teacher", "train-student", "distil-pipeline", "train-cnn"):
        assert f" --min-steps {PROJECT['vars']['min_steps']} " in COMMANDS[name]["script"][-1]


def test_variables_have_values_that_the_scripts_know() -> None:
    assert PROJECT["vars"]["ner"] in NER
    assert PROJECT["vars"]["precision"] in PRECISIONS
    assert PROJECT["vars"]["packaged"] == BEST
    StudentSettings(start=PROJECT["vars"]["distilled_from"])


def test_both_sets_of_constraints_fit_the_package() -> None:
    for name, major in (("constraints.txt", "4"), ("constraints-transformers-5.txt", "5")):
        pins = dict(
            line.split("==") for line in (ROOT / name).read_text(encoding="utf8").split() if line
        )
        assert pins["transformers"].startswith(major)
        assert "+" not in pins["torch"]
    assert srsly.read_yaml(ROOT / "project.yml")["vars"]["dataset"] == "sample"
