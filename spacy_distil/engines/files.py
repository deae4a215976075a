"""The files of a saved encoder, and what can be wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spacy_distil.errors import WeightsError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"


def read_files(directory: Path) -> dict[str, bytes]:
    """The encoder's files as bytes, by name.

    Raises WeightsError where the directory or one of them is missing.
    """
    files = {}
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        path = directory / name
        if not path.is_file():
            raise WeightsError(
                f"{path} is missing. A saved encoder is the three files "
                f"{CONFIG}, {WEIGHTS} and {TOKENIZER}; save or copy the pipeline again."
            )
        files[name] = path.read_bytes()
    return files


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write an encoder's files, by name, into a directory, which is made where it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)


def parse_config(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The encoder's `config.json`.

    Raises WeightsError where it is no JSON object with a "model_type".
    """
    try:
        config = json.loads(files[CONFIG])
    except ValueError as error:
        raise WeightsError(f"{CONFIG} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise WeightsError(f'{CONFIG} names no "model_type", so the encoder cannot be built.')
    return config


def longest_window(config: Mapping[str, Any]) -> int:
    """Most pieces, special ones included, that an encoder takes at once.

    config: a transformers `config.json`.
    """
    positions = int(config["max_position_embeddings"])
    if config["model_type"] in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        # Their positions count from the padding id on, and that one is never used.
        positions -= int(config.get("pad_token_id", 1)) + 1
    return positions
