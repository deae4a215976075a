"""The settings of a pipeline distillation, and what their errors name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from thinc.api import Config

from spacy_distil.distillation.pipeline.config import load_config
from spacy_distil.errors import ConfigError
from tests.distillation.pipeline.util import student_config


@pytest.fixture
def config(bert_dir: Path, tmp_path: Path) -> Config:
    return student_config(bert_dir, tmp_path, ("tagger", "ner"))


def test_pipes_have_the_temperature_of_the_distillation_unless_they_have_their_own(
    config: Config,
) -> None:
    config["distillation"]["pipes"] = {
        "tagger": {"temperature": None, "weight": 2.0},
        "ner": {"temperature": 3.0, "teacher": "names"},
    }
    pipes = load_config(config, {"distillation.temperature": 2.0}).pipes
    assert [pipes[name].temperature for name in ("tagger", "ner")] == [2.0, 3.0]
    assert pipes["tagger"].weight == 2.0
    assert [pipes[name].source(name) for name in ("tagger", "ner")] == ["tagger", "names"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"distillation.stages.soft.soft": 0.0}, "would learn nothing"),
        (
            {"distillation.stages.gold.share": 0.001},
            r"gold\.share = 0\.001: .* none is left",
        ),
        ({"distillation.stages.soft.share": -1}, r"distillation\.stages\.soft\.share = -1"),
        ({"distillation.temperature": 0}, r"distillation\.temperature = 0"),
        ({"distillation.temprature": 2}, "no such setting"),
        ({"distillation.pipes.tagger.target": "hard"}, r"target = 'hard'.*'auto', 'soft'"),
        ({"distillation.pipes.tagger.temperature": 0}, r"tagger\.temperature = 0:.*greater than 0"),
        ({"distillation.pipes.tagger.temperature": float("nan")}, "tagger.temperature = nan"),
        ({"distillation.pipes.tagger.weight": -0.5}, r"tagger\.weight = -0\.5:.*equal to 0"),
        ({"training.max_steps": 0}, r"training\.max_steps = 0"),
        ({"training.eval_frequency": 0}, r"training\.eval_frequency = 0: expected a whole number"),
        ({"training.eval_frequency": 0.5}, r"training\.eval_frequency = 0\.5"),
        ({"training.max_epochs": 3}, r"training\.max_epochs = 3"),
    ],
)
def test_wrong_settings_are_named(overrides: dict[str, Any], message: str, config: Config) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(config, overrides)


def test_a_block_that_is_no_stage(config: Config) -> None:
    config["distillation"]["stages"]["last"] = {"share": 1.0}
    with pytest.raises(ConfigError, match="is no stage"):
        load_config(config)


def test_a_config_without_the_section(config: Config) -> None:
    del config["distillation"]
    with pytest.raises(ConfigError, match="init-config pipeline"):
        load_config(config)
