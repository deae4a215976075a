"""A small trained teacher, and a config of its students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from thinc.api import Config

from tests.distillation.pipeline.util import student_config, train_pipeline, write_corpus

PIPES = ("tagger", "distil_ner")


@pytest.fixture(scope="session")
def teacher(bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of two layers, 32 wide, trained for a while."""
    path = tmp_path_factory.mktemp("teacher") / "teacher"
    train_pipeline(bert_dir, PIPES, steps=30).to_disk(path)
    return path


@pytest.fixture(scope="session")
def corpus(bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    write_corpus(directory, train_pipeline(bert_dir, ["tagger"], steps=0))
    return directory


@pytest.fixture
def config(bert_dir: Path, corpus: Path) -> Config:
    config = student_config(bert_dir, corpus, PIPES)
    config["distillation"]["stages"] = {"soft": {"share": 1.0}}
    config["fit"] = settings()
    return config


def settings(**more: Any) -> dict[str, Any]:
    """A budget that all students fit, unless it is changed."""
    return {"words_per_second": 1.0, "rungs": [0.34], "cnn": [8], **more}
