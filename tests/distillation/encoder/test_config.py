"""Valid and invalid configs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from spacy_distil.cli.configs import encoder_config
from spacy_distil.distillation.encoder.config import FREE_ON_RESUME, load_config
from spacy_distil.distillation.encoder.objectives import (
    Cosine,
    Loss,
    MaskedLM,
    Needs,
    Objective,
    Outputs,
    SoftTargets,
    distil_objectives,
)
from spacy_distil.errors import ConfigError
from spacy_distil.runs.settings import changed_settings

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "distil.cfg"
    file.write_text(encoder_config())
    return file


def test_default_is_distilberts_recipe(path: Path) -> None:
    config = load_config(path)
    assert config.teacher.name == "bert-base-uncased"
    found = {name: (type(o), o.weight.at(0)) for name, o in config.objectives.items()}
    assert found == {
        "soft_targets": (SoftTargets, 5.0),
        "masked_lm": (MaskedLM, 2.0),
        "cosine": (Cosine, 1.0),
    }
    assert config.mask_probability == 0.15
    assert (config.training.learn_rate, config.training.warmup) == (5e-4, 0.05)


def test_config_in_the_repository_is_the_template() -> None:
    assert (ROOT / "configs" / "encoder.cfg").read_text() == encoder_config()


def test_every_setting_is_in_the_template(path: Path) -> None:
    sections = load_config(path).source
    for name in ("teacher", "student", "corpus", "training"):
        block = encoder_config().split(f"[{name}]")[1].split("\n[")[0]
        keys = {line.split(" = ")[0] for line in block.splitlines() if " = " in line[:30]}
        blocks = set(re.findall(rf"^\[{name}\.(\w+)\]", encoder_config(), re.MULTILINE))
        assert set(sections[name]) <= keys | blocks
        for inner in blocks:
            block = encoder_config().split(f"[{name}.{inner}]")[1].split("\n[")[0]
            assert all(f"\n{key} = " in block for key in sections[name][inner])


def test_weight_zero_switches_an_objective_off(path: Path) -> None:
    off = {"objectives.soft_targets.weight": 0, "objectives.masked_lm.weight": 0}
    config = load_config(path, off)
    assert list(config.objectives) == ["cosine"]
    assert config.mask_probability == 0  # no objective predicts pieces
    assert load_config(path, {**off, "corpus.mask_probability": 0.2}).mask_probability == 0.2


def test_a_single_path_stands_for_a_list(path: Path) -> None:
    assert load_config(path, {"corpus.train": "a.txt"}).corpus.train == ["a.txt"]
    assert load_config(path, {"student.layers": [0, 3]}).student.layers == [0, 3]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"training.batch_size": -3}, r"training\.batch_size = -3: .*greater than or equal to 1"),
        ({"training.batch_size": "many"}, r"training\.batch_size = 'many'"),
        ({"training.learn_rate": 0}, r"training\.learn_rate = 0: .*greater than 0"),
        ({"training.batchsize": 3}, r"training\.batchsize = 3: no such setting.*batch_size"),
        ({"training.mixed_precision": "fp8"}, r"training\.mixed_precision = 'fp8'.*bf16"),
        ({"training.epochs": None}, r"training\.epochs and training\.max_steps are both null"),
        ({"student.layers": "odd"}, r"student\.layers = 'odd': .*'first', 'last', 'even'"),
        ({"student.start": "zero"}, r"student\.start = 'zero': .*'teacher' or 'random'"),
        ({"student.width": 0}, r"student\.width = 0"),
        ({"training.batch_size": {"@schedules": "none.v1"}}, r"training\.batch_size = .*none\.v1"),
        ({"training.micro_batch": "big"}, r"training\.micro_batch = 'big'"),
        ({"training.dropout": 1.0}, r"training\.dropout = 1\.0: .*less than 1"),
        ({"student.n_layers": 0}, r"student\.n_layers = 0"),
        ({"corpus.dev_fraction": 1}, r"corpus\.dev_fraction = 1: .*less than 1"),
        ({"corpus.alpha": -0.5}, r"corpus\.alpha = -0\.5: .*greater than or equal to 0"),
        ({"corpus.alpha": 1.5}, r"corpus\.alpha = 1\.5: .*less than or equal to 1"),
        ({"corpus.languages.de": 3}, r"corpus\.languages\.de = 3: .*valid list"),
        ({"corpus.languages.de/at": "a"}, r"corpus\.languages\.de/at: expected letters, digits"),
        (
            {"corpus.languages.de": "a", "corpus.train": "b"},
            r"corpus\.train = \['b'\], and corpus\.languages names de: expected one of the two",
        ),
        (
            {"corpus.languages.de": "a", "corpus.dev": "b"},
            r"corpus\.dev = \['b'\], but .*names de: .*in \[corpus\.dev_languages\]",
        ),
        (
            {"corpus.languages.de": "a", "corpus.dev_languages.fr": "b"},
            r"corpus\.dev_languages\.fr: expected one of the names .*\(de\)",
        ),
        (
            {"corpus.train": "a", "corpus.dev_languages.fr": "b"},
            r"corpus\.dev_languages\.fr: expected .*\(there are none\)",
        ),
        ({"corpus.mask_probability": "some"}, r"corpus\.mask_probability = 'some'"),
        ({"corpus.mask_probability": 0}, r"mask_probability = 0, but objectives\.soft_targets"),
        ({"teacher.nam": "x"}, r"teacher\.nam = 'x': no such setting.*name, revision"),
        ({"trainer.seed": 1}, r"trainer\.seed: not a section"),
        ({"objectives.soft.weight": 1}, r"objectives\.soft\.weight: not a section"),
        ({"objectives.cosine.weight": -1}, r"objectives\.cosine\.weight = -1.*at least 0"),
        ({"objectives.cosine.weight": "x"}, r"objectives\.cosine\.weight = 'x'"),
        ({"objectives.cosine.wight": 1}, r"objectives\.cosine\.wight = 1: no such setting"),
        ({"objectives.soft_targets.temperature": 0}, r"soft_targets\.temperature = 0.*above 0"),
        ({"objectives.soft_targets.positions": "some"}, r"soft_targets\.positions = 'some'"),
        (
            {"objectives.cosine.@distil_objectives": "spacy-distil.Sine.v1"},
            r"'spacy-distil\.Sine\.v1': no such objective\. Known: .*Cosine\.v1",
        ),
        (
            {f"objectives.{o}.weight": 0 for o in ("soft_targets", "masked_lm", "cosine")},
            "no objective with a weight other than 0",
        ),
    ],
)
def test_errors_name_setting_and_value(path: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(path, overrides)


def test_errors_of_whole_sections(path: Path, tmp_path: Path) -> None:
    sections = dict(load_config(path).source)
    with pytest.raises(ConfigError, match=r"\[trainer\] is not a section"):
        load_config({**sections, "trainer": {"seed": 1}})
    with pytest.raises(ConfigError, match=r"teacher\.name is missing"):
        load_config({**sections, "teacher": {"revision": "main"}})
    with pytest.raises(ConfigError, match=r"\[objectives\.mine\] does not say which objective"):
        load_config({**sections, "objectives": {"mine": {"weight": 1.0}}})
    with pytest.raises(ConfigError, match=r"distil\.cfg does not exist.*init-config encoder"):
        load_config(tmp_path / "none" / "distil.cfg")
    path.write_text("[teacher\nname = 1")
    with pytest.raises(ConfigError):
        load_config(path)


def test_saved_config_reads_back(path: Path, tmp_path: Path) -> None:
    first = load_config(path, {"corpus.train": "a.txt", "training.max_steps": 7})
    first.source.to_disk(tmp_path / "again.cfg")
    second = load_config(tmp_path / "again.cfg")
    assert changed_settings(first.source, second.source) == []


def test_languages_are_read_in_any_order(path: Path, tmp_path: Path) -> None:
    """The command line may name them, one path or several."""
    names = {"corpus.languages.fr": ["a.txt", "b.txt"], "corpus.languages.de": "c.txt"}
    found = load_config(path, names)
    assert list(found.corpus.languages.items()) == [("de", ["c.txt"]), ("fr", ["a.txt", "b.txt"])]
    found.source.to_disk(tmp_path / "again.cfg")
    again = load_config(tmp_path / "again.cfg")
    assert again.corpus == found.corpus
    assert changed_settings(found.source, again.source) == []


def test_an_objective_is_no_score_of_a_language(path: Path) -> None:
    sections = load_config(path).source
    objectives = {"de/total": {"@distil_objectives": "spacy-distil.Cosine.v1"}}
    with pytest.raises(ConfigError, match=r"Choose another name, such as de_total_loss"):
        load_config({**sections, "objectives": objectives})


def test_changed_settings_are_named_except_free_ones(path: Path) -> None:
    first = load_config(path).source
    changes = {
        "training.seed": 1,
        "training.eval_frequency": 3,
        "objectives.cosine.weight": 2.0,
        "corpus.cache": "elsewhere",
    }
    second = load_config(path, changes).source
    assert changed_settings(first, second, FREE_ON_RESUME) == [
        "objectives.cosine.weight",
        "training.seed",
    ]


def test_objectives_of_other_packages_are_found(path: Path) -> None:
    class Length(Objective):
        needs = Needs(teacher=False)

        def forward(self, outputs: Outputs) -> Loss:
            return Loss(torch.zeros(()), 1)

    distil_objectives.register("test.Length.v1", func=lambda weight: Length(weight))
    sections = {**load_config(path).source, "stages": {}}
    mine = {"length": {"@distil_objectives": "test.Length.v1", "weight": 3.0}}
    found = load_config({**sections, "objectives": mine}).objectives["length"]
    assert isinstance(found, Length)
    assert found.weight.at(0) == 3.0


STAGES = {
    "stages": {
        "first": {"objectives": ["cosine"], "share": 0.2},
        "second": {"objectives": ["soft_targets", "masked_lm"], "learn_rate": 1e-4},
    }
}


def test_stages_are_read_in_order(path: Path) -> None:
    config = load_config({**load_config(path).source, **STAGES})
    assert list(config.stages) == ["first", "second"]
    assert (config.stages["first"].share, config.stages["second"].learn_rate) == (0.2, 1e-4)


def test_stages_leave_out_inactive_objectives(path: Path) -> None:
    sections = {**load_config(path).source, **STAGES}
    some = load_config(sections, {"objectives.masked_lm.weight": 0})
    assert some.stages["second"].objectives == ["soft_targets"]
    off = {f"objectives.{name}.weight": 0 for name in ("soft_targets", "masked_lm")}
    assert list(load_config(sections, off).stages) == ["first"]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"a": {"objectives": ["sine"]}}, r"stages\.a\.objectives names 'sine'.*soft_targets"),
        ({"a": {"objectives": ["cosine"]}}, r"no stage names objectives\.soft_targets"),
        ({"a": {"objectives": []}}, r"stages\.a\.objectives = \[\]: .*at least 1 item"),
        ({"a": {"objectives": ["cosine"], "share": 0}}, r"stages\.a\.share = 0: .*greater than 0"),
        ({"a": {"objective": "cosine"}}, r"stages\.a\.objective = 'cosine': no such setting"),
        ({"a": 3}, r"stages\.a = 3: must be a block"),
    ],
)
def test_errors_of_stages(path: Path, stages: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({**load_config(path).source, "stages": stages})


def test_numbers_may_be_schedules(path: Path) -> None:
    ramp = {"@schedules": "compounding.v1", "start": 1.0, "stop": 4.0, "compound": 2.0}
    sections = load_config(path).source
    sections["objectives"]["soft_targets"]["temperature"] = ramp
    sections["objectives"]["soft_targets"]["weight"] = ramp
    sections["training"]["batch_size"] = {**ramp, "start": 8, "stop": 64}
    config = load_config(sections)
    soft = config.objectives["soft_targets"]
    assert isinstance(soft, SoftTargets)
    for schedule in (soft.weight, soft.temperature):
        assert [schedule.at(step) for step in range(4)] == [1.0, 2.0, 4.0, 4.0]
    sizes = config.training.batch_sizes()
    assert [sizes.at(step) for step in range(5)] == [8, 16, 32, 64, 64]
    assert load_config(config.source).source == config.source
