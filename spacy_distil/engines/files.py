"""Read, check and write the files of a saved encoder."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from spacy_distil.errors import WeightsError
from spacy_distil.runs.files import atomic_directory, atomic_files, is_replaceable

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
GRAPH = "model.onnx"

# The number of a layer in the name of a weight.
LAYER_NUMBER = re.compile(r"\blayers?\.(\d+)\.")

# Families that number positions from the padding's id on.
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
# The model file of each engine, beside config and tokenizer.
MODELS: dict[EngineName, str] = {"torch": WEIGHTS, "onnx": GRAPH}


def read_files(directory: Path, engine: EngineName) -> dict[str, bytes]:
    """Read the files of an encoder for `engine` as bytes, by name.

    Raises WeightsError if the directory or a file is missing.
    """
    files = {}
    for name in (CONFIG, MODELS[engine], TOKENIZER):
        path = directory / name
        if not path.is_file():
            check_engine([file.name for file in directory.glob("*")], engine)
            raise WeightsError(
                f"{path} is missing. A saved encoder is the three files "
                f"{CONFIG}, {MODELS[engine]} and {TOKENIZER}; save or copy the pipeline again."
            )
        files[name] = path.read_bytes()
    return files


def check_engine(names: Collection[str], engine: EngineName) -> None:
    """Raise WeightsError if an encoder's files, by name, are for another engine."""
    others = [other for other, model in MODELS.items() if model in names]
    if others and engine not in others:
        quantize = ", or make an ONNX pipeline with 'spacy distil quantize'"
        raise WeightsError(
            f"{MODELS[engine]} is missing, which engine = {engine!r} runs; {MODELS[others[0]]} is "
            f"there. Set engine = {others[0]!r}{quantize if engine == 'onnx' else ''}."
        )


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write an encoder's files, by name, into a directory, which is created if it is missing.

    The model of another engine is deleted, so that the directory holds one encoder. A directory
    that holds nothing but an encoder is replaced as a whole, so that a kill leaves the old encoder
    or the new one. In others, files are replaced one by one.
    """
    (model,) = (name for name in MODELS.values() if name in files)
    own = {CONFIG, TOKENIZER, *MODELS.values()}
    others = {path.name for path in directory.iterdir()} - own if directory.is_dir() else set()
    if not others and is_replaceable(directory):
        with atomic_directory(directory) as new:
            _write(new, files)
        return
    with atomic_files(directory, last=model) as new:
        _write(new, files)
    for name in MODELS.values():
        if name != model:
            (directory / name).unlink(missing_ok=True)


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (directory / name).write_bytes(content)


def dump_config(config: Mapping[str, Any]) -> bytes:
    """Serialize a `config.json`."""
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode("utf8")


def parse_config(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Parse the `config.json` among an encoder's files.

    Raises WeightsError if it is not a JSON object with a "model_type".
    """
    try:
        config = json.loads(files[CONFIG])
    except ValueError as error:
        raise WeightsError(f"{CONFIG} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise WeightsError(f'{CONFIG} names no "model_type", so the encoder cannot be built.')
    return config


def first_position(config: Mapping[str, Any]) -> int:
    """Return the index of the position embedding that the first piece of a window has.

    config: a transformers `config.json`.
    """
    if config["model_type"] in PADDED_POSITIONS:
        # The padding's position is never used. MPNet's code ignores the id in its config.
        padding = None if config["model_type"] == "mpnet" else config.get("pad_token_id")
        return (1 if padding is None else int(padding)) + 1
    return 0


def longest_window(config: Mapping[str, Any]) -> int:
    """Return the most pieces that an encoder takes at once, special ones included.

    config: a transformers `config.json`.
    """
    return int(config["max_position_embeddings"]) - first_position(config)
