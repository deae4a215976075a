"""Load and check saved pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import spacy

from spacy_distil.errors import ConfigError

if TYPE_CHECKING:
    from spacy.language import Language


def load_pipeline(pipeline: str) -> Language:
    """Load a pipeline by path or package name."""
    check_pipeline(pipeline)
    return spacy.load(pipeline)


def check_pipeline(pipeline: str) -> None:
    """Raise ConfigError if `pipeline` is neither a saved pipeline nor an installed package."""
    if spacy.util.is_package(pipeline) or (Path(pipeline) / "meta.json").is_file():
        return
    if Path(pipeline).exists():
        raise ConfigError(
            f"{pipeline} is not a saved spaCy pipeline: it has no meta.json. "
            "`spacy train` saves one as model-best."
        )
    raise ConfigError(
        f"No pipeline {pipeline!r}: expected the directory of a saved spaCy pipeline, "
        "or the name of an installed pipeline package."
    )


def count_bytes(path: Path) -> int:
    """Return the size of all files under a directory."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
