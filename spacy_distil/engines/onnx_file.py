"""Read the tensors in an ONNX file, without the package `onnx`, which is not in the base install.

An ONNX file is one message of protocol buffers: fields with a number and a value, which may be a
message itself. https://protobuf.dev/programming-guides/encoding/ and onnx.proto3 describe it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from spacy_distil.errors import WeightsError
from spacy_distil.runs.digests import Content

# The fields of each message that hold messages with tensors, by their numbers.
_PARTS = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
# Fields of a model, of a graph, and of an entry of the metadata.
_GRAPH, _METADATA, _INITIALIZER, _KEY, _VALUE = 7, 14, 5, 1, 2
# Fields of a tensor.
_DIMS, _DATA_TYPE, _FLOATS, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 4, 8, 9, 13, 14
_FLOAT, _UINT8, _INT8, _FLOAT16, _DOUBLE = 1, 2, 3, 10, 11
_FORMATS = {_FLOAT: "<f4", _FLOAT16: "<f2", _DOUBLE: "<f8"}


def check_tensors(graph: Content, source: str) -> None:
    """Raise WeightsError for a tensor that is not in the file, or has values that are not finite.

    ONNX Runtime reads tensors outside of the file from the directory that the program runs in.

    source: name of the file, for errors.
    """
    try:
        tensors = [_read(tensor) for tensor in _tensors(memoryview(graph), "model")]
    except (IndexError, KeyError, RecursionError, ValueError) as error:
        raise WeightsError(
            f"{source} ({len(graph):,} bytes) is not an ONNX file, or is damaged: save or copy the "
            "pipeline again."
        ) from error
    for name, is_external, values in tensors:
        if is_external:
            raise WeightsError(
                f"{source} keeps the tensor {name!r} in another file, which is not read. Make the "
                "graph with 'spacy distil quantize', which keeps all in one file."
            )
        # Minimum and maximum are NaN if any value is.
        if values.size and not np.isfinite([values.min(), values.max()]).all():
            raise WeightsError(
                f"{source}: the weights {name!r} have values that are not finite numbers. Save or "
                "copy the pipeline again."
            )


def read_metadata(graph: Content, key: str) -> str | None:
    """Read an entry of the metadata of an ONNX file; `None` if it has none of this key."""
    for number, entry in _fields(memoryview(graph)):
        if number == _METADATA and isinstance(entry, memoryview):
            fields = dict(_fields(entry))
            name, text = fields.get(_KEY), fields.get(_VALUE)
            if isinstance(name, memoryview) and bytes(name) == key.encode():
                return bytes(text).decode("utf8") if isinstance(text, memoryview) else ""
    return None


def read_tensors(graph: Content) -> dict[str, np.ndarray]:
    """Read the weights of an ONNX file, by name: float32, int8 and uint8, which share its memory.

    Raises ValueError if the shape of one does not fit.
    """
    formats, tensors = {_FLOAT: "<f4", _UINT8: "u1", _INT8: "i1"}, {}
    for number, part in _fields(memoryview(graph)):
        if number != _GRAPH or not isinstance(part, memoryview):
            continue
        for field, tensor in _fields(part):
            if field != _INITIALIZER or not isinstance(tensor, memoryview):
                continue
            fields = list(_fields(tensor))
            last = dict(fields)
            kind, raw, name = (last.get(key) for key in (_DATA_TYPE, _RAW, _NAME))
            if kind in formats and isinstance(raw, memoryview) and isinstance(name, memoryview):
                values = np.frombuffer(raw, formats[kind])
                tensors[bytes(name).decode("utf8")] = values.reshape(_shape(fields))
    return tensors


def _shape(tensor: list[tuple[int, int | memoryview]]) -> list[int]:
    """Read the shape of a tensor. Numbers of a list stand in one field together, or in many."""
    shape = []
    for number, value in tensor:
        if number != _DIMS:
            continue
        if isinstance(value, int):
            shape.append(value)
            continue
        place = 0
        while place < len(value):
            size, place = _varint(value, place)
            shape.append(size)
    return shape


def _tensors(message: memoryview, kind: str) -> Iterator[memoryview]:
    """Yield the messages of all tensors in a message."""
    for number, value in _fields(message):
        part = _PARTS[kind].get(number)
        if part is None:
            continue
        if not isinstance(value, memoryview):
            raise ValueError(f"field {number} of a {kind} is not a message")
        if part == "tensor":
            yield value
        else:
            yield from _tensors(value, part)


def _read(tensor: memoryview) -> tuple[str, bool, np.ndarray]:
    """RETURNS: name, whether its values are in another file, and the values if they are floats."""
    name, is_external, kind, parts = "", False, 0, []
    for number, value in _fields(tensor):
        if number == _NAME:
            name = bytes(value).decode("utf8", errors="replace")
        elif number == _DATA_TYPE:
            kind = int(value)
        elif number in (_EXTERNAL, _LOCATION):
            is_external = is_external or number == _EXTERNAL or bool(value)
        elif number in (_RAW, _FLOATS) and isinstance(value, memoryview):
            parts.append(value)
    if kind not in _FORMATS or not parts:
        return name, is_external, np.empty(0)
    return name, is_external, np.frombuffer(parts[-1], _FORMATS[kind])


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field: a number, or the bytes of anything else."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(message, place)
        else:
            size = {1: 8, 5: 4}[wire]
        if place + size > len(message):
            raise ValueError("a field ends after the file")
        yield number, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """RETURNS: a number, and the place after it. Its bytes have 7 bits each, the lowest first."""
    number = shift = 0
    while True:
        byte = message[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place
        if shift > 63:
            raise ValueError("a number has too many bytes")
