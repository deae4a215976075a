"""Encoders for tests of graphs, and converted pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import spacy

from spacy_distil.export.convert import convert


@pytest.fixture(scope="session", params=["bert", "distilbert", "electra", "roberta", "xlm-roberta"])
def encoder_dir(request: pytest.FixtureRequest, encoder_dirs: dict[str, Path]) -> Path:
    """A small random encoder of each family with BERT's layers."""
    return encoder_dirs[request.param]


@pytest.fixture
def converted(tmp_path: Path) -> Callable[..., tuple[Any, Any]]:
    """Saves a pipeline, converts it, and returns the conversion and what spacy.load loads."""

    def save_and_convert(nlp: Any, **settings: Any) -> tuple[Any, Any]:
        nlp.to_disk(tmp_path / "trf")
        conversion = convert(tmp_path / "trf", tmp_path / "ours", **settings)
        return conversion, spacy.load(tmp_path / "ours")

    return save_and_convert
