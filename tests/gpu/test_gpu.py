"""The component on a GPU: the same numbers as on the CPU, in all precisions, heads on either."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
from thinc.api import get_current_ops

from spacy_distil.errors import OutOfMemoryError
from tests.util import (
    SENTENCES,
    adam,
    encoder_of,
    make_examples,
    make_nlp,
    same,
    torch_model_of,
)

HEADS = ["tagger", "ner", "textcat"]
# Of sums in another order, and of TF32 where torch uses it.
CLOSE = {"rtol": 0, "atol": 2e-3}
# Of bfloat16 and float16, whose mantissas have 8 and 11 bits.
ROUGH = {"rtol": 0, "atol": 0.15}


def vectors(nlp: Any, texts: tuple[str, ...] = SENTENCES) -> np.ndarray:
    to_numpy = get_current_ops().to_numpy
    return np.concatenate([to_numpy(doc.tensor) for doc in nlp.pipe(texts)])


def on_cpu(directory: Path, **settings: Any) -> np.ndarray:
    encoder = encoder_of(make_nlp(directory, device="cpu", **settings))
    nlp = spacy.blank("en")
    from thinc.api import NumpyOps

    tokvecs: Any = encoder.predict_docs([nlp.make_doc(text) for text in SENTENCES], NumpyOps())
    return np.concatenate(tokvecs)


def test_vectors_are_those_of_the_cpu(encoder_dir: Path, heads: str) -> None:
    nlp = make_nlp(encoder_dir)
    assert encoder_of(nlp).engine.device_name.startswith("cuda")
    np.testing.assert_allclose(vectors(nlp), on_cpu(encoder_dir), **CLOSE)
    tensor = nlp(SENTENCES[0]).tensor
    assert type(tensor).__module__.split(".")[0] == heads


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_near(bert_dir: Path, heads: str, dtype: torch.dtype) -> None:
    nlp = make_nlp(bert_dir, mixed_precision=True)
    _set_precision(nlp, dtype)
    found = vectors(nlp)
    expected = on_cpu(bert_dir)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() > 1e-5
    np.testing.assert_allclose(found, expected, **ROUGH)


def _set_precision(nlp: Any, dtype: torch.dtype) -> None:
    """What `mixed_precision` chooses by the GPU, so that both are tried on each."""
    engine: Any = encoder_of(nlp).engine
    engine._autocast = dtype
    engine._scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_learns(
    bert_dir: Path, heads: str, precision: torch.dtype | None, checkpointing: bool
) -> None:
    nlp = make_nlp(
        bert_dir,
        HEADS,
        mixed_precision=precision is not None,
        gradient_checkpointing=checkpointing,
    )
    if precision is not None:
        _set_precision(nlp, precision)
    examples, optimizer = make_examples(nlp), adam(5e-3)
    before = {n: p.detach().clone() for n, p in torch_model_of(nlp).named_parameters()}
    for _ in range(30):
        nlp.update(examples, sgd=optimizer)
    scores = nlp.evaluate(make_examples(nlp))
    assert scores["tag_acc"] > 0.9
    assert scores["ents_f"] > 0.9
    weights = dict(torch_model_of(nlp).named_parameters())
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert any((weights[name] - old).abs().max() > 1e-4 for name, old in before.items())


def gradients(nlp: Any) -> dict[str, np.ndarray]:
    model = nlp.get_pipe("transformer").model
    tokvecs, backprop = model.begin_update([nlp.make_doc(" ".join(SENTENCES)), nlp.make_doc("")])
    backprop(tokvecs)
    return {
        name: p.grad.cpu().numpy()
        for name, p in torch_model_of(nlp).named_parameters()
        if p.grad is not None
    }


def test_gradients_are_those_of_the_cpu(encoder_dir: Path, heads: str) -> None:
    settings = {"window": 24, "overlap": 4}
    found = gradients(make_nlp(encoder_dir, **settings))
    expected = gradients(make_nlp(encoder_dir, device="cpu", **settings))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(found[name] / scale, gradient / scale, rtol=0, atol=5e-3)


def test_checkpointing_drops_the_same_twice(dropout_dir: Path) -> None:
    """The second forward has the GPU's random numbers of the first."""
    found = []
    for checkpointing in (False, True):
        nlp = make_nlp(dropout_dir, gradient_checkpointing=checkpointing)
        torch.manual_seed(3)
        found.append(gradients(nlp))
    assert same(found[0], found[1], atol=1e-3)


def test_from_the_gpu_to_the_cpu_and_back(bert_dir: Path, heads: str, tmp_path: Path) -> None:
    nlp = make_nlp(bert_dir, HEADS)
    optimizer = adam()
    nlp.update(make_examples(nlp), sgd=optimizer)
    expected = vectors(nlp)
    nlp.to_disk(tmp_path)
    override = {"components": {"transformer": {"model": {"device": "cpu"}}}}
    np.testing.assert_allclose(vectors(spacy.load(tmp_path, config=override)), expected, **CLOSE)
    np.testing.assert_allclose(vectors(spacy.load(tmp_path)), expected, **CLOSE)
    restored = spacy.blank("en").from_config(nlp.config).from_bytes(nlp.to_bytes())
    np.testing.assert_allclose(vectors(restored), expected, **CLOSE)


def test_optimizer_state_goes_on(bert_dir: Path) -> None:
    """Saved on the GPU, moments and loss scale are there again."""
    nlp = make_nlp(bert_dir, ["tagger"], mixed_precision=True)
    _set_precision(nlp, torch.float16)
    nlp.update(make_examples(nlp), sgd=adam())
    engine: Any = encoder_of(nlp).engine
    state = engine.optimizer_to_bytes()
    engine.optimizer_from_bytes(state)
    assert engine.optimizer_to_bytes() == state


def test_the_onnx_engine_beside_heads_on_the_gpu(onnx_pipeline: Path, heads: str) -> None:
    nlp = spacy.load(onnx_pipeline)
    assert type(nlp(SENTENCES[0]).tensor).__module__.split(".")[0] == heads


def synchronizations(nlp: Any, n_docs: int) -> int:
    """Calls that wait for the GPU, in one prediction and one update of the encoder."""
    texts = [SENTENCES[i % 2] for i in range(n_docs)]
    docs = [nlp.make_doc(text) for text in texts]
    model = nlp.get_pipe("transformer").model

    def run() -> None:
        model.predict(docs)
        tokvecs, backprop = model.begin_update(docs)
        backprop(tokvecs)

    run()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
    waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
    return sum(event.count for event in profile.key_averages() if event.key in waits)


def test_no_synchronization_for_each_doc(bert_dir: Path, heads: str) -> None:
    nlp = make_nlp(bert_dir)
    few, many = synchronizations(nlp, 8), synchronizations(nlp, 64)
    assert 0 < many <= few + 4


def test_running_out_of_memory_is_explained(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, max_batch_pieces=10**9)
    docs = [nlp.make_doc(" ".join(SENTENCES * 50)) for _ in range(200)]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.002)
    try:
        with pytest.raises(OutOfMemoryError, match=r"cuda.* no memory left .*\n.*200 docs"):
            nlp.get_pipe("transformer").model.begin_update(docs)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert np.isfinite(vectors(nlp)).all()


TRAIN = """
import sys
import spacy
from thinc.api import require_gpu, set_gpu_allocator
set_gpu_allocator("pytorch")
require_gpu(0)
from tests.util import adam, make_examples, make_nlp
nlp = make_nlp(sys.argv[1], ["tagger", "ner", "textcat"])
optimizer = adam(5e-3)
for _ in range(5):
    losses = nlp.update(make_examples(nlp), sgd=optimizer)
print(sorted(losses))
"""


def test_memory_of_cupy_from_torch(bert_dir: Path) -> None:
    """`gpu_allocator = "pytorch"`, as spaCy's templates have it for transformers."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(bert_dir)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "['ner', 'tagger', 'textcat', 'transformer']" in done.stdout


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()
