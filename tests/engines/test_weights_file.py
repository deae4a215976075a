"""Reading and writing `model.safetensors`, against the package `safetensors`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors

from spacy_distil.engines.pretrained import load_weight, store_weight
from spacy_distil.engines.weights_file import dump_weights_file, read_weights_file
from spacy_distil.errors import WeightsError

SHAPES = ((), (0, 3), (3, 5), (7,), (2, 0), (1, 1, 4))
KINDS = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}


def make_weights(kinds: list[str], seed: int = 0) -> dict[str, torch.Tensor]:
    """Make random weights of all shapes, with names that JSON must escape."""
    rng = np.random.default_rng(seed)
    weights = {}
    for kind in kinds:
        for shape in SHAPES:
            weight = torch.empty(shape, dtype=KINDS[kind])
            data = rng.integers(0, 2 if kind == "BOOL" else 256, weight.nbytes)
            weight.view(-1).view(torch.uint8)[:] = torch.from_numpy(data)
            weights[f'Größe "{kind}" \\{shape}'] = weight
    return weights


def dump(weights: dict[str, torch.Tensor]) -> bytes:
    return b"".join(dump_weights_file({k: store_weight(v) for k, v in weights.items()}))


def same_bytes(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[k].dtype == second[k].dtype
        and first[k].shape == second[k].shape
        and bytes(store_weight(first[k]).data) == bytes(store_weight(second[k]).data)
        for k in first
    )


def read(content: bytes) -> dict[str, torch.Tensor]:
    found = read_weights_file(memoryview(bytearray(content)))
    return {name: load_weight(weight) for name, weight in found.items()}


def test_bytes_are_those_of_safetensors() -> None:
    weights = make_weights([*KINDS])
    weights["transposed"] = torch.arange(6.0).reshape(2, 3).T
    content = dump(weights)
    assert same_bytes(safetensors.load(content), weights)
    # That package refuses a transposed matrix.
    weights["transposed"] = weights["transposed"].contiguous()
    assert content == safetensors.save(weights, metadata={"format": "pt"})
    assert same_bytes(read(content), weights)


def test_no_weights() -> None:
    assert dump({}) == safetensors.save({}, metadata={"format": "pt"})
    assert read(dump({})) == {}


def test_memory_is_shared() -> None:
    weight = torch.arange(12.0)
    weight[3] = -1.0
    parts = dump_weights_file({"weight": store_weight(weight)})
    weight[4] = -2.0
    memory = memoryview(bytearray(b"".join(parts)))
    again = load_weight(read_weights_file(memory)["weight"])
    assert torch.equal(again, weight)
    again[5] = -3.0
    assert safetensors.load(bytes(memory))["weight"][5] == -3.0


def test_the_order_of_bytes_is_that_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = make_weights([*KINDS])
    content = dump(weights)
    monkeypatch.setattr("sys.byteorder", "big")
    assert same_bytes(read(dump(weights)), weights)
    swapped = read(content)
    for name, weight in weights.items():
        if weight.dtype is torch.float32:
            assert swapped[name].numpy().tobytes() == weight.numpy().byteswap().tobytes()


def test_damage_is_seen_where_safetensors_sees_it() -> None:
    """Each byte of the header is changed, and the file is cut at each length."""
    weights = {"a": torch.arange(4.0), "b": torch.arange(3), "c": torch.ones(2, 2)}
    content = dump(weights)
    header = 8 + int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(0)
    damaged = [content[:n] for n in range(len(content))] + [content + b"\0"]
    for place in range(header):
        for value in (0, 0x20, 0x39, int(rng.integers(256))):
            damaged.append(content[:place] + bytes([value]) + content[place + 1 :])
    n_refused = 0
    for each in damaged:
        try:
            expected = safetensors.load(each)
        except (SafetensorError, KeyError, OverflowError, TypeError, ValueError):
            n_refused += 1
            with pytest.raises(WeightsError, match=r"model\.safetensors .* cannot be read"):
                read(each)
        else:
            assert same_bytes(read(each), expected)
    assert header < n_refused < len(damaged)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F4"}, "the type 'F4', expected one of"),
        ({"dtype": ["F32"]}, "unhashable"),
        ({"shape": [-2, -2]}, r"shape \[-2, -2\]"),
        ({"shape": [2.0, 2]}, r"shape \[2\.0, 2\]"),
        ({"shape": None}, "cannot be read"),
        ({"data_offsets": [0]}, "cannot be read"),
        ({"data_offsets": [4, 20]}, "not where its shape"),
        ({"shape": [5]}, "not where its shape"),
        ({"shape": [3], "data_offsets": [0, 12]}, "its weights end at byte"),
    ],
)
def test_a_wrong_entry_is_named(entry: dict[str, object], message: str) -> None:
    header = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **entry}}
    text = json.dumps(header).encode()
    with pytest.raises(WeightsError, match=message):
        read(len(text).to_bytes(8, "little") + text + bytes(16))
