"""Loading and saving without copies of the weights."""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import srsly
import torch
from safetensors.torch import load_file, save_file

from spacy_distil.component.shim import EncoderShim, _pack
from spacy_distil.engines.files import CONFIG, WEIGHTS, forget_pages, map_file, read_files
from spacy_distil.engines.torch import TorchEngine
from spacy_distil.errors import WeightsError
from spacy_distil.runs.digests import add_sums
from tests.util import (
    SENTENCES,
    encoder_of,
    make_examples,
    make_nlp,
    torch_model_of,
)

# Of the synthetic encoder: nearly all are the embeddings of its pieces.
N_BYTES = 100_000_000


def address_range(content: Any) -> range:
    start = np.frombuffer(content, np.uint8).ctypes.data
    return range(start, start + len(content))


def assert_same_vectors(left: Any, right: Any) -> None:
    for text in (*SENTENCES, "", "  ", "👩‍👧 e\u0301 中文 \x07", "long " * 200):
        np.testing.assert_array_equal(left(text).tensor, right(text).tensor)


def test_embeddings_are_the_mapped_file(torch_pipeline: Path) -> None:
    files = read_files(torch_pipeline / "transformer", "torch")
    content = files[WEIGHTS]
    assert isinstance(content, memoryview)
    assert isinstance(content.obj, mmap.mmap)
    model = TorchEngine.from_files(files, device="cpu").model
    embeddings = model.get_input_embeddings().weight
    assert embeddings.data_ptr() in address_range(content)
    # Products read the others, from aligned memory.
    others = [p for p in model.parameters() if p.data_ptr() not in address_range(content)]
    assert len(others) > 10
    assert not any(p.data_ptr() % 64 for p in others)


def test_bytes_of_others_are_not_the_weights(torch_pipeline: Path) -> None:
    """Training would change them."""
    path = torch_pipeline / "transformer"
    files = {name: bytes(content) for name, content in read_files(path, "torch").items()}
    model = TorchEngine.from_files(files, device="cpu").model
    before = bytes(bytearray(files[WEIGHTS]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert files[WEIGHTS] == before == (path / WEIGHTS).read_bytes()


def test_bytes_are_not_kept_as_a_whole(torch_pipeline: Path) -> None:
    """All weights but the embeddings would be in memory twice."""
    path = torch_pipeline / "transformer"
    files = {name: bytes(content) for name, content in read_files(path, "torch").items()}
    tracemalloc.start()
    try:
        model = TorchEngine.from_files(files, device="cpu").model
        traces = tracemalloc.take_snapshot().traces
    finally:
        tracemalloc.stop()
    assert max(trace.size for trace in traces) < len(files[WEIGHTS])
    assert not any(p.data_ptr() % 64 for p in model.parameters())


def test_saved_parts_are_the_weights(torch_pipeline: Path) -> None:
    nlp = spacy.load(torch_pipeline)
    model = torch_model_of(nlp)
    parts = encoder_of(nlp).engine.to_parts()[WEIGHTS]
    addresses = {np.frombuffer(part, np.uint8).ctypes.data for part in parts if len(part)}
    assert {p.data_ptr() for p in model.parameters()} <= addresses


def test_bytes_are_those_of_msgpack(torch_pipeline: Path, onnx_pipeline: Path) -> None:
    for path in (torch_pipeline, onnx_pipeline):
        shim = encoder_of(spacy.load(path))
        assert srsly.msgpack_loads(shim.to_bytes()) == add_sums(shim.to_files())
    with pytest.raises(WeightsError, match=r"has 4,294,967,296 bytes: .* Use to_disk"):
        _pack({"model": [memoryview(mmap.mmap(-1, 1 << 32))]})  # takes no memory
    empty = EncoderShim(shim.settings)
    assert empty.to_bytes() == srsly.msgpack_dumps({})
    assert not empty.copy().is_loaded


def test_saving_writes_the_same_bytes_again(
    torch_pipeline: Path, onnx_pipeline: Path, tmp_path: Path
) -> None:
    for path in (torch_pipeline, onnx_pipeline):
        shutil.copytree(path, tmp_path / path.name)
        old = {p.name: p.read_bytes() for p in (path / "transformer").iterdir()}
        nlp: Any = spacy.load(tmp_path / path.name)
        for target in (tmp_path / "other", tmp_path / path.name):  # the last is mapped
            nlp.to_disk(target)
            assert {p.name: p.read_bytes() for p in (target / "transformer").iterdir()} == old
            assert_same_vectors(nlp, spacy.load(target))
        shutil.rmtree(tmp_path / "other")


def test_training_changes_neither_the_file_nor_others(torch_pipeline: Path, tmp_path: Path) -> None:
    path = tmp_path / "pipeline"
    shutil.copytree(torch_pipeline, path)
    old = (path / "transformer" / WEIGHTS).read_bytes()
    learner, reader = spacy.load(path), spacy.load(path)
    before = reader(SENTENCES[0]).tensor.copy()
    for _ in range(2):
        learner.update(make_examples(learner), sgd=learner.resume_training())
    learned = learner(SENTENCES[0]).tensor
    assert not np.allclose(learned, before, atol=1e-6)
    assert (path / "transformer" / WEIGHTS).read_bytes() == old
    np.testing.assert_array_equal(reader(SENTENCES[0]).tensor, before)
    # Onto the files that both have mapped.
    learner.to_disk(path)
    np.testing.assert_array_equal(learner(SENTENCES[0]).tensor, learned)
    np.testing.assert_array_equal(reader(SENTENCES[0]).tensor, before)
    np.testing.assert_array_equal(spacy.load(path)(SENTENCES[0]).tensor, learned)
    shutil.rmtree(path)
    original = spacy.load(torch_pipeline)(SENTENCES[1]).tensor
    np.testing.assert_array_equal(reader(SENTENCES[1]).tensor, original)


def test_a_mapping_is_private(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 64)
    content, other = map_file(path), map_file(path)
    forget_pages(content)
    assert content == other == path.read_bytes()
    assert isinstance(content, memoryview)
    content[5000] = 1
    assert content[5000] == 1 != other[5000]
    assert path.read_bytes() == other
    path.unlink()
    assert other[5000] == 5000 % 256
    (tmp_path / "empty").write_bytes(b"")
    assert map_file(tmp_path / "empty") == b""
    forget_pages(b"no mapping")


def test_a_file_that_cannot_be_mapped_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **settings: Any) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(mmap, "mmap", refuse)
    (tmp_path / "file").write_bytes(b"content")
    assert map_file(tmp_path / "file") == b"content"


# Memory


@pytest.fixture(scope="module")
def large_dir(bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with so many pieces that its embeddings are nearly all of its weights."""
    directory = tmp_path_factory.mktemp("large") / "encoder"
    shutil.copytree(bert_dir, directory)
    weights = load_file(directory / WEIGHTS)
    name = "embeddings.word_embeddings.weight"
    width = weights[name].shape[1]
    config = json.loads((directory / CONFIG).read_text())
    config["vocab_size"] = N_BYTES // 4 // width
    pieces = torch.randn(config["vocab_size"], width)
    pieces[: len(weights[name])] = weights[name]
    save_file({**weights, name: pieces}, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / CONFIG).write_text(json.dumps(config))
    return directory


def peak_growth(do: Callable[[], Any]) -> tuple[Any, float]:
    """RETURNS: the result, and by how much resident memory grew at most, in sizes of the file."""
    # This resets the peak, VmHWM.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    result = do()
    return result, (_status("VmHWM") - before) / N_BYTES


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise AssertionError(key)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peaks_of_memory(large_dir: Path, tmp_path: Path) -> None:
    nlp: Any = make_nlp(large_dir)
    path = tmp_path / "pipeline"
    # Saving copies nothing.
    _, peak = peak_growth(lambda: nlp.to_disk(path))
    assert peak < 0.3
    # Loading has the file in memory once, while it checks it, and then next to nothing of it.
    loaded, peak = peak_growth(lambda: spacy.load(path))
    assert peak < 1.3
    _, peak = peak_growth(lambda: loaded(SENTENCES[0]))
    assert peak < 0.3
    np.testing.assert_array_equal(loaded(SENTENCES[0]).tensor, nlp(SENTENCES[0]).tensor)
    # Only the bytes that it returns.
    data, peak = peak_growth(encoder_of(nlp).to_bytes)
    assert len(data) / N_BYTES < peak + 0.1
    assert peak < 1.3
    # The files in these bytes, and the weights.
    _, peak = peak_growth(lambda: encoder_of(loaded).from_bytes(data))
    assert peak < 2.3
