"""The encoders that tests of graphs run over."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session", params=["bert", "distilbert", "electra", "roberta", "xlm-roberta"])
def encoder_dir(request: pytest.FixtureRequest, encoder_dirs: dict[str, Path]) -> Path:
    """A small random encoder of each family whose layers are BERT's. Others have files of their
    own.
    """
    return encoder_dirs[request.param]
