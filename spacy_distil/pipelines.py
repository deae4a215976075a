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


def check_output(output: Path, *, force: bool, source: Path | None = None) -> None:
    """Raise `ConfigError` if a pipeline must not be written to `output`.

    force: replace a saved pipeline. Anything else in `output` is never replaced.
    source: the pipeline to read, a directory or the name of a package. It must not be overwritten.
    """
    if source is not None and source.exists() and output.resolve() == source.resolve():
        raise ConfigError(f"{output} is the pipeline itself. Choose another directory.")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not force:
        raise ConfigError(f"{output} exists. Choose another directory, or replace it with --force.")
    if not (output / "meta.json").is_file():
        raise ConfigError(
            f"{output} is not a saved pipeline (it has no meta.json), and is not replaced. "
            "Choose another directory."
        )
