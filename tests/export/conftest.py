"""Encoders for tests of graphs."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session", params=["bert", "distilbert", "electra", "roberta", "xlm-roberta"])
def encoder_dir(request: pytest.FixtureRequest, encoder_dirs: dict[str, Path]) -> Path:
    """A small random encoder of each family with BERT's layers."""
    return encoder_dirs[request.param]
