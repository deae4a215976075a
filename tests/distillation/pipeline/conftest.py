"""A small trained teacher of all kinds of pipes."""

from __future__ import annotations

from pathlib import Path

import pytest
from spacy.language import Language

from tests.distillation.pipeline.util import PIPES, train_pipeline, write_corpus


@pytest.fixture(scope="session")
def teacher(bert_dir: Path) -> Language:
    """A pipeline of two layers, 32 wide, and of PIPES, trained for a while. Leave it as it is."""
    return train_pipeline(bert_dir, PIPES, steps=20)


@pytest.fixture
def corpus(tmp_path: Path, teacher: Language) -> Path:
    """A directory with the files of `write_corpus`."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    write_corpus(directory, teacher)
    return directory
