"""The configs that `init-config` writes, for runs of a second."""

from __future__ import annotations

from pathlib import Path

from thinc.api import Config

from spacy_distil.cli import configs


def encoder_config(*, teacher: str | Path, text: str | Path) -> Config:
    """Return the config of `init-config encoder` with 4 steps."""
    quick = {
        "teacher": {"name": str(teacher)},
        "corpus": {"train": str(text), "block_size": 32, "dev_fraction": 0.1},
        "training": {"epochs": None, "max_steps": 4, "batch_size": 4, "tensorboard": False},
    }
    return Config().from_str(configs.encoder_config(), interpolate=False).merge(quick)


def pipeline_config(*, train: str | Path, dev: str | Path, text: str | Path | None) -> Config:
    """Return the config of `init-config pipeline` with 2 steps, for the teachers of these tests."""
    written = configs.pipeline_config(pipes=("tagger", "ner", "textcat"))
    config = Config().from_str(written, interpolate=False)
    config["paths"].update(train=str(train), dev=str(dev), text=text and str(text))
    config["training"].update(max_steps=2, eval_frequency=2)
    return config
