"""The files of a cache: they are complete or absent, and mapped into memory."""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from spacy_distil.distillation.pipeline.cache.layout import (
    OFFSET_DTYPE,
    Layout,
    each_field,
    format_code,
)
from spacy_distil.distillation.pipeline.heads.base import Array
from spacy_distil.errors import ConfigError
from spacy_distil.runs.files import atomic_file

SHARDS = "shard-*.safetensors"
READ_BYTES = 1 << 20
# A shard's metadata, and its entry: the identity of its cache, and the digest of its tensors. (Two
# entries would come in a random order, and equal shards would be different files.)
METADATA, ENTRY = "__metadata__", "cache and sha256"


class MappedField(NamedTuple):
    """A field in a shard.

    per: what a row stands for.
    rows: the rows of all docs, (n_rows, width).
    offsets: for items, the first row of each doc and the number of rows, (n_docs + 1,). Else empty.
    """

    head: str
    name: str
    per: str
    rows: Array
    offsets: Array


def shard_path(directory: Path, shard: int) -> Path:
    return directory / SHARDS.replace("*", f"{shard:05}")


def rows_key(head: str, name: str) -> str:
    """Return the name of a field's tensor."""
    return f"{head}/{name}"


def offsets_key(head: str, name: str) -> str:
    """Return the name of the tensor with the offsets of items."""
    return f"{head}/{name}/offsets"


# Writing


def write_shard(path: Path, tensors: dict[str, Array], identity: str, mode_of: Path) -> None:
    """Write a shard.

    identity: of the cache. `map_shard` compares it.
    mode_of: a file whose permissions the shard gets.
    """
    needed = sum(tensor.nbytes for tensor in tensors.values())
    with atomic_file(path, needed=needed) as unfinished:
        digest = _digest(
            (key, format_code(str(tensor.dtype)), tensor.shape, [np.ascontiguousarray(tensor).data])
            for key, tensor in tensors.items()
        )
        save_file(tensors, unfinished, metadata={ENTRY: f"{identity} {digest}"})
        # safetensors lets only the owner read its files, whatever the umask.
        shutil.copymode(mode_of, unfinished)


def _digest(tensors: Iterable[tuple[str, str | None, Sequence[int], Iterable[Any]]]) -> str:
    """Return a digest of tensors. tensors: name, number format, shape and parts of the values."""
    digest = hashlib.sha256()
    for name, dtype, shape, values in sorted(tensors, key=lambda tensor: tensor[0]):
        digest.update(f"{name} {dtype} {list(shape)};".encode())
        for part in values:
            digest.update(part)
    return digest.hexdigest()


# Reading


def map_shard(
    path: Path, layout: Layout, shard: int, identity: str, *, check_values: bool = True
) -> list[MappedField]:
    """Map the fields of `layout` in a shard.

    check_values: whether to read all of it and compare its digest.
    Raises ConfigError if the file is damaged or of another cache.

    The slices of the safetensors library take some microseconds each, which is too slow for
    thousands of small docs a second, and it has none for arrays without rows.
    """
    docs = layout.docs(shard)
    fields = []
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            start = 8 + int.from_bytes(data[:8], "little")
            header = json.loads(data[8:start])
            owner, digest = header[METADATA][ENTRY].split()
            if owner != identity:
                raise ValueError("it belongs to another cache")
            if check_values:
                _check_digest(file, start, header, digest)
        no_offsets = np.zeros(0, OFFSET_DTYPE)
        for head, name, field in each_field(layout.fields):
            rows = _tensor(data, start, header, rows_key(head, name), field.dtype)
            offsets, n_rows = no_offsets, len(docs) if field.per == "doc" else layout.tokens(docs)
            if field.per == "item":
                offsets = _tensor(data, start, header, offsets_key(head, name), OFFSET_DTYPE)
                if offsets.shape != (len(docs) + 1,):
                    raise ValueError(f"{head}.{name} is of {len(offsets) - 1} documents")
                n_rows = int(offsets[-1])
            if rows.shape != (n_rows, field.width):
                raise ValueError(
                    f"{head}.{name} has shape {rows.shape}, expected {(n_rows, field.width)}"
                )
            fields.append(MappedField(head, name, field.per, rows, offsets))
    except OSError as error:
        raise ConfigError(
            f"A part of the teacher's cache cannot be read: {error}. If the file is missing, the "
            "next run computes it again."
        ) from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{path} is damaged ({error}). Delete it, and the next run computes this part of the "
            "teacher's cache again; --force does both."
        ) from error
    return fields


def _check_digest(file: IO[bytes], start: int, header: Mapping[str, Any], digest: str) -> None:
    """Raise ValueError if the tensors are not the ones that were written.

    It reads the file, because pages that it reads of the mapped file would stay in memory.
    """
    places = {key: entry["data_offsets"] for key, entry in header.items() if key != METADATA}
    found = _digest(
        (key, header[key]["dtype"], header[key]["shape"], _parts(file, start + begin, start + end))
        for key, (begin, end) in places.items()
    )
    if found != digest:
        raise ValueError("it has changed since it was written: its SHA-256 is another")


def _parts(file: IO[bytes], begin: int, end: int) -> Iterator[bytes]:
    """Read the bytes from `begin` to `end` in parts."""
    file.seek(begin)
    while part := file.read(max(0, min(READ_BYTES, end - file.tell()))):
        yield part


def _tensor(data: mmap.mmap, start: int, header: Mapping[str, Any], key: str, dtype: str) -> Array:
    """Return a view of a tensor.

    start: the byte that the offsets in the header count from.
    """
    entry = header[key]
    if entry["dtype"] != format_code(dtype):
        raise ValueError(f"{key} is {entry['dtype']}, expected {format_code(dtype)}")
    offset = start + entry["data_offsets"][0]
    return np.ndarray(tuple(entry["shape"]), np.dtype(dtype).newbyteorder("<"), data, offset)
