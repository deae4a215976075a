"""Settings that the component reads from the config of a pipeline."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.tokens import DocBin
from spacy.training.initialize import init_nlp
from thinc.api import Config

from spacy_distil.cli.configs import training_config
from tests.util import make_examples, registry

RISES = "The warm-up of the learning rate"


@pytest.fixture
def config(bert_dir: Path, tmp_path: Path) -> Config:
    """A config of `init-config train`, with 16 documents of 6 words."""
    docs = [each.reference for each in make_examples(spacy.blank("en"))]
    DocBin(docs=docs).to_disk(tmp_path / "train.spacy")
    text = training_config(pipes=["tagger"], encoder=str(bert_dir))
    config = Config().from_str(text, interpolate=False)
    config["components"]["transformer"]["model"]["window"] = None
    config["paths"].update(train=str(tmp_path / "train.spacy"), dev=str(tmp_path / "train.spacy"))
    return config


def output_of(config: Config, capsys: pytest.CaptureFixture[str], **training: Any) -> str:
    init_nlp(Config(config).merge({"training": training}), use_gpu=-1)
    return " ".join(capsys.readouterr().out.split())


def test_a_warmup_that_never_ends(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    output = output_of(config, capsys, max_steps=30)
    assert f"{RISES} ends with the last step, of 30 in all" in output
    assert "warmup_steps to 3," in output


def test_a_warmup_of_most_steps(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    output = output_of(config, capsys, max_steps=150)
    assert f"{RISES} takes 100 steps, of 150 in all" in output


def test_steps_by_epochs(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    batcher = {"size": 12, "tolerance": 0.0}  # 2 documents
    rate = {"total_steps": 1000}
    settings = {"max_steps": 0, "batcher": batcher, "optimizer": {"learn_rate": rate}}
    output = output_of(config, capsys, max_epochs=3, **settings)
    assert f"{RISES} ends with the last step, of 24 in all" in output
    assert RISES not in output_of(config, capsys, max_epochs=40, **settings)
    assert RISES not in output_of(config, capsys, max_epochs=0, **settings)


def test_schedules_that_end_their_warmup_or_have_none(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    assert RISES not in output_of(config, capsys)
    warmup = {"warmup_steps": 3}
    assert RISES not in output_of(config, capsys, max_steps=30, optimizer={"learn_rate": warmup})
    config["training"]["optimizer"]["learn_rate"] = 0.0001
    assert RISES not in output_of(config, capsys, max_steps=30)


@pytest.mark.filterwarnings("default:The encoder's first step:UserWarning")
def test_a_constant_rate_of_the_pipes_is_too_high_for_the_encoder(config: Config) -> None:
    message = "first step has a learning rate of 0.001, without warm-up"

    def first_updates(scale: float, rate: Any) -> Any:
        settings = {"learn_rate_scale": scale}
        part = {"components": {"transformer": {"model": settings}}}
        nlp: Any = init_nlp(Config(config).merge(part), use_gpu=-1)
        optimizer = registry.optimizers.get("Adam.v1")(rate, L2_is_weight_decay=True)
        for _ in range(2):
            optimizer.step_schedules()
            nlp.update(make_examples(nlp), sgd=optimizer)

    with pytest.warns(UserWarning, match=message) as caught:
        first_updates(1.0, 1e-3)
    assert len([each for each in caught if message in str(each.message)]) == 1
    assert "learn_rate_scale" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first_updates(0.2, 1e-3)
        first_updates(1.0, registry.schedules.get("warmup_linear.v1")(1e-3, 100, 1000))
