"""The configs that `init-config` writes, for runs of a second."""

from __future__ import annotations

from pathlib import Path

from thinc.api import Config

from spacy_distil.cli.encoder_template import ENCODER_CONFIG
from spacy_distil.cli.pipeline_template import PIPELINE_CONFIG


def encoder_config(*, teacher: str | Path, text: str | Path) -> Config:
    """Return the config of `init-config encoder` with 4 steps."""
    quick = {
        "teacher": {"name": str(teacher)},
        "corpus": {"train": str(text), "block_size": 32, "dev_fraction": 0.1},
        "training": {"epochs": None, "max_steps": 4, "batch_size": 4, "tensorboard": False},
    }
    return Config().from_str(ENCODER_CONFIG, interpolate=False).merge(quick)


def pipeline_config(*, train: str | Path, dev: str | Path, text: str | Path | None) -> Config:
    """Return the config of `init-config pipeline` with 2 steps, for the teachers of these tests."""
    config = Config().from_str(PIPELINE_CONFIG, interpolate=False)
    config["nlp"]["pipeline"] = ["transformer", "tagger", "ner", "textcat"]
    del config["components"]["morphologizer"], config["training"]["score_weights"]["pos_acc"]
    config["paths"].update(train=str(train), dev=str(dev), text=text and str(text))
    config["training"].update(max_steps=2, eval_frequency=2)
    return config
