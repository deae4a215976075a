"""Read, check and write the files of a saved encoder."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from spacy_distil.engines.config_check import check_settings
from spacy_distil.errors import DamagedError, WeightsError
from spacy_distil.runs.digests import (
    SUMS,
    Content,
    Parts,
    add_sums,
    as_parts,
    check_directory,
    check_sums,
    write_sums,
)
from spacy_distil.runs.files import atomic_contents

T = TypeVar("T")

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
# git-lfs leaves a small pointer in the place of a file that it has not fetched.
_POINTER, _POINTER_SIZE = b"version https://git-lfs.github.com/spec/", 1024
# The model file of each engine, beside config and tokenizer.
MODELS: dict[EngineName, str] = {"torch": WEIGHTS, "onnx": GRAPH}


def read_files(directory: Path, engine: EngineName) -> dict[str, Content]:
    """Read the files of an encoder for `engine`, by name. The model's is mapped, see `map_file`.

    If the directory has digests, the files must have them. A plain Hugging Face model has none.

    Raises WeightsError if the directory or a file is missing, or has changed.
    """
    _check_pointers(directory)
    files: dict[str, Content] = {}
    for name in (CONFIG, MODELS[engine], TOKENIZER):
        path = directory / name
        if not path.is_file():
            check_engine([file.name for file in directory.glob("*")], engine)
            raise WeightsError(
                f"{path} is missing. A saved encoder is the three files "
                f"{CONFIG}, {MODELS[engine]} and {TOKENIZER}; save or copy the pipeline again."
            )
        files[name] = map_file(path) if name == MODELS[engine] else path.read_bytes()
    sums = directory / SUMS
    if not sums.is_file():
        return files
    with _explain_damage(directory):
        return check_sums({**files, SUMS: sums.read_bytes()})


def map_file(path: Path) -> Content:
    """Map a file into memory, where it takes no space of its own.

    Processes that map the same file share its memory. A page that is written to becomes private:
    neither the file nor another process changes. The file itself may be replaced or deleted, but
    must not be written to or cut short.

    RETURNS: a memoryview of the mapping, or bytes where files are read.
    """
    # Windows refuses to replace a file that is mapped, and no system maps an empty one.
    if os.name != "nt" and path.stat().st_size:
        # Some network and user-space file systems map no files.
        with path.open("rb") as file, suppress(OSError):
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    return path.read_bytes()


def forget_pages(content: Content) -> None:
    """Give the memory of a mapped file back after it was read as a whole, for checks.

    Later use reads it from the file again. Numbers that were written to the memory are lost.
    """
    mapped = content.obj if isinstance(content, memoryview) else None
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def check_folder(directory: Path) -> None:
    """Check files against the digests of their directory, if it has some.

    Raises WeightsError if one is missing or has changed, or has not been fetched by git-lfs.
    """
    _check_pointers(directory)
    if not (directory / SUMS).is_file():
        return
    with _explain_damage(directory):
        check_directory(directory)


class PipeFolder:
    """Saves a pipe whole, with digests, and checks them. It stands before `TrainablePipe` among the
    bases of a pipe.
    """

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """Replace the files of the pipe in a directory, see `atomic_contents`, with digests."""
        own = {"cfg", "model", "vocab", SUMS}
        with atomic_contents(Path(path), own=own, last=SUMS) as new:
            super().to_disk(new, exclude=exclude)  # type: ignore[misc]
            write_sums(new)

    def from_disk(self: T, path: str | Path, *, exclude: Iterable[str] = ()) -> T:
        """Read what `to_disk` wrote. Raises WeightsError if a file has changed."""
        if "model" not in exclude:
            check_folder(Path(path))
        return super().from_disk(path, exclude=exclude)  # type: ignore[misc]


def _check_pointers(directory: Path) -> None:
    """Raise WeightsError for a file that git-lfs has not fetched."""
    for path in sorted(directory.glob("*")):
        is_small = path.is_file() and path.stat().st_size < _POINTER_SIZE
        if is_small and path.read_bytes().startswith(_POINTER):
            raise WeightsError(
                f"{path} is a pointer of git-lfs, not the file itself. Run 'git lfs pull'."
            )


@contextmanager
def _explain_damage(directory: Path) -> Iterator[None]:
    """Turn a DamagedError into a WeightsError that says what to do."""
    try:
        yield
    except DamagedError as error:
        raise WeightsError(
            f"{error}. Save or copy it again. If you have changed files of the folder on purpose, "
            f"delete {directory / SUMS}."
        ) from error


def check_engine(names: Collection[str], engine: EngineName) -> None:
    """Raise WeightsError if an encoder's files, by name, are for another engine."""
    others = [other for other, model in MODELS.items() if model in names]
    if others and engine not in others:
        other = others[0]
        quantize = (
            "; or make an ONNX pipeline of it with 'spacy distil quantize', and load that"
            if engine == "onnx"
            else ""
        )
        raise WeightsError(
            f"{MODELS[engine]} is missing, which engine = {engine!r} runs; {MODELS[other]} is "
            f"there, which engine = {other!r} runs. spacy.load(...) makes a pipeline with the "
            "engine of its config; nlp.from_disk, nlp.from_bytes and initialization do not change "
            f"the engine of one. Load it with spacy.load, without another engine, or set engine = "
            f"{other!r} in the model of this encoder before you build the pipeline{quantize}."
        )


def write_files(directory: Path, files: Mapping[str, bytes | Parts]) -> None:
    """Write an encoder's files, by name, and their digests into a directory, which is created if it
    is missing. See `atomic_contents`.

    The digests move last, so files of two encoders do not pass for one. The model of another engine
    is deleted, so that the directory holds one encoder.
    """
    own = {CONFIG, TOKENIZER, SUMS, *MODELS.values()}
    with atomic_contents(directory, own=own, last=SUMS) as new:
        for name, content in add_sums(files).items():
            with (new / name).open("wb") as file:
                file.writelines(as_parts(content))


def join_parts(files: Mapping[str, Parts]) -> dict[str, bytes]:
    """Return the content of each file, by name."""
    return {name: b"".join(content) for name, content in files.items()}


def dump_config(config: Mapping[str, Any]) -> bytes:
    """Serialize a `config.json`."""
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode("utf8")


def parse_config(files: Mapping[str, Content]) -> dict[str, Any]:
    """Parse the `config.json` among an encoder's files.

    Raises WeightsError if it is not a JSON object with a "model_type", or has values that cannot be
    right.
    """
    try:
        config = json.loads(bytes(files[CONFIG]))
    except ValueError as error:
        raise WeightsError(f"{CONFIG} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise WeightsError(f'{CONFIG} names no "model_type", so the encoder cannot be built.')
    check_settings(config)
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
