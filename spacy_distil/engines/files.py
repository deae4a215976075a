"""The files of a saved encoder, and what can be wrong with them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from spacy_distil.errors import WeightsError

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
GRAPH = "model.onnx"

# Families whose positions count from the padding's id on.
PADDED_POSITIONS = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
    }
)

EngineName = Literal["torch", "onnx"]
# What each engine runs: its third file, beside config and tokenizer.
MODELS: dict[EngineName, str] = {"torch": WEIGHTS, "onnx": GRAPH}


def read_files(directory: Path, engine: EngineName) -> dict[str, bytes]:
    """The files of an encoder for `engine` as bytes, by name.

    Raises WeightsError where the directory or one of them is missing.
    """
    files = {}
    for name in (CONFIG, MODELS[engine], TOKENIZER):
        path = directory / name
        if not path.is_file():
            check_engine([each.name for each in directory.glob("*")], engine)
            raise WeightsError(
                f"{path} is missing. A saved encoder is the three files "
                f"{CONFIG}, {MODELS[engine]} and {TOKENIZER}; save or copy the pipeline again."
            )
        files[name] = path.read_bytes()
    return files


def check_engine(names: Collection[str], engine: EngineName) -> None:
    """Raise WeightsError where an encoder's files, by name, are those of another engine."""
    others = [other for other, model in MODELS.items() if model in names]
    if others and engine not in others:
        quantize = ", or make an ONNX pipeline with 'spacy distil quantize'"
        raise WeightsError(
            f"{MODELS[engine]} is missing, which engine = {engine!r} runs; {MODELS[others[0]]} is "
            f"there. Set engine = {others[0]!r}{quantize if engine == 'onnx' else ''}."
        )


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write an encoder's files, by name, into a directory, which is made where it is missing.

    Another engine's model is deleted, so that the directory holds one encoder.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in MODELS.values():
        if name not in files:
            (directory / name).unlink(missing_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)


def dump_config(config: Mapping[str, Any]) -> bytes:
    """The bytes of a `config.json`."""
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode("utf8")


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


def first_position(config: Mapping[str, Any]) -> int:
    """Index of the position embedding of a window's first piece.

    config: a transformers `config.json`.
    """
    if config["model_type"] in PADDED_POSITIONS:
        # That one is never used. MPNet's code has its own, whatever its config says.
        padding = None if config["model_type"] == "mpnet" else config.get("pad_token_id")
        return (1 if padding is None else int(padding)) + 1
    return 0


def longest_window(config: Mapping[str, Any]) -> int:
    """Most pieces, special ones included, that an encoder takes at once.

    config: a transformers `config.json`.
    """
    return int(config["max_position_embeddings"]) - first_position(config)
