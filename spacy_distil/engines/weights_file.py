"""Read and write safetensors without copying the weights, and without torch.

The package `safetensors` copies all weights when it reads bytes or makes them. A file is the length
of a header, the header, and the weights one after the other.
https://huggingface.co/docs/safetensors describes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from spacy_distil.engines.files import WEIGHTS
from spacy_distil.errors import WeightsError
from spacy_distil.runs.digests import Content

# The bytes of a number of each type. Weights are written in the order of types, the last one first,
# as `safetensors` does.
SIZES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1},
    **{"I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4},
    **{"C64": 8, "F64": 8, "I64": 8, "U64": 8},
}
# The header's length takes so many bytes, and the weights begin at a multiple of them.
_LENGTH = 8
_METADATA = "__metadata__"


@dataclass(frozen=True)
class StoredWeight:
    """A weight in a file.

    kind: one of SIZES.
    data: its numbers, which share the file's memory.
    """

    kind: str
    shape: tuple[int, ...]
    data: memoryview


def read_weights_file(content: Content) -> dict[str, StoredWeight]:
    """Find the weights in the content of a `model.safetensors`, by name.

    Raises WeightsError if it is damaged.
    """
    try:
        return dict(_read(memoryview(content)))
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{WEIGHTS} ({len(content):,} bytes) cannot be read: {error}. It is truncated or not a "
            "safetensors file; save or copy the pipeline again."
        ) from error


def _read(content: memoryview) -> Iterator[tuple[str, StoredWeight]]:
    begin = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    if not _LENGTH < begin <= len(content):
        raise ValueError("its header ends after the file")
    header = json.loads(bytes(content[_LENGTH:begin]))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop(_METADATA, None)
    end = 0
    # The weights leave no gap and do not overlap.
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if kind not in SIZES:
            raise ValueError(f"{name} has the type {kind!r}, expected one of {', '.join(SIZES)}")
        if not all(type(number) is int and number >= 0 for number in (start, stop, *shape)):
            raise ValueError(f"{name} has the shape {shape} at {start} to {stop}")
        if start != end or stop - start != SIZES[kind] * prod(shape):
            raise ValueError(f"{name} is not where its shape {shape} and the others place it")
        end = stop
        yield name, StoredWeight(kind, tuple(shape), content[begin + start : begin + stop])
    if begin + end != len(content):
        raise ValueError(f"its weights end at byte {begin + end:,}")


def dump_weights_file(weights: Mapping[str, StoredWeight]) -> list[Content]:
    """Return the content of a `model.safetensors` in parts, which share the memory of the weights.

    They are the bytes that the package `safetensors` writes.
    """
    kinds = [*SIZES]
    ordered = sorted(weights.items(), key=lambda item: (-kinds.index(item[1].kind), item[0]))
    # transformers reads only files that name the framework that wrote them.
    header: dict[str, Any] = {_METADATA: {"format": "pt"}}
    end = 0
    for name, weight in ordered:
        start, end = end, end + len(weight.data)
        header[name] = {
            "dtype": weight.kind,
            "shape": list(weight.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)
    length = len(text).to_bytes(_LENGTH, "little")
    return [length, text, *(weight.data for _, weight in ordered)]
