"""The component on a GPU: the same numbers as on the CPU, in all precisions, heads on either."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
from thinc.api import NumpyOps, get_current_ops

from spacy_distil.errors import OutOfMemoryError
from tests import util
from tests.gpu.marks import real_gpu
from tests.gpu.waits import count_waits
from tests.util import SENTENCES, adam, encoder_of, make_examples, torch_model_of

ROOT = Path(__file__).resolve().parents[2]
HEADS = ["tagger", "ner", "textcat"]
# Of sums in another order, and of TF32 where torch uses it.
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-3}
# Of bfloat16 and float16, whose mantissas have 8 and 11 bits.
ROUGH: dict[str, Any] = {"rtol": 0, "atol": 0.15}

# Its encoder is on the GPU unless the settings say otherwise.
make_nlp = partial(util.make_nlp, device="cuda")


def vectors(nlp: Any, texts: tuple[str, ...] = SENTENCES) -> np.ndarray:
    to_numpy = get_current_ops().to_numpy
    return np.concatenate([to_numpy(doc.tensor) for doc in nlp.pipe(texts)])


def on_cpu(directory: Path, **settings: Any) -> np.ndarray:
    encoder = encoder_of(make_nlp(directory, device="cpu", **settings))
    nlp = spacy.blank("en")
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
    """Set the precision that `mixed_precision` would choose by the GPU, so that both are tested."""
    engine: Any = encoder_of(nlp).engine
    engine._autocast = dtype
    engine._optimizer._scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)


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


def assert_alike(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray], *, atol: float
) -> None:
    """Compare gradients. atol: relative to the largest number in a gradient, if that is above 1."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(
            found[name] / scale, gradient / scale, rtol=0, atol=atol, err_msg=name
        )


def test_gradients_are_those_of_the_cpu(encoder_dir: Path, heads: str) -> None:
    settings: dict[str, Any] = {"window": 24, "overlap": 4}
    found = gradients(make_nlp(encoder_dir, **settings))
    expected = gradients(make_nlp(encoder_dir, device="cpu", **settings))
    assert_alike(found, expected, atol=5e-3)


def test_checkpointing_drops_the_same_twice(dropout_dir: Path) -> None:
    """The second forward pass uses the GPU's random numbers of the first."""
    found = []
    for checkpointing in (False, True):
        nlp = make_nlp(dropout_dir, gradient_checkpointing=checkpointing)
        torch.manual_seed(3)
        found.append(gradients(nlp))
    assert_alike(found[1], found[0], atol=1e-3)


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
    """Moments and loss scale are saved and loaded on the GPU."""
    nlp = make_nlp(bert_dir, ["tagger"], mixed_precision=True)
    _set_precision(nlp, torch.float16)
    optimizer = adam()
    for _ in range(10):  # the first are skipped, until the loss scale is small enough
        nlp.update(make_examples(nlp), sgd=optimizer)
    engine: Any = encoder_of(nlp).engine
    state = engine.optimizer_to_bytes()
    assert b"exp_avg_sq" in state
    engine.optimizer_from_bytes(state)
    assert engine.optimizer_to_bytes() == state


def test_the_onnx_engine_beside_heads_on_the_gpu(onnx_pipeline: Path, heads: str) -> None:
    nlp = spacy.load(onnx_pipeline)
    assert type(nlp(SENTENCES[0]).tensor).__module__.split(".")[0] == heads


def assert_not_for_each_doc(run_on: Callable[[int], Callable[[], object]]) -> None:
    """Check that the number of waits does not grow with the docs.

    run_on: takes a number of docs, which are a single batch of the encoder, and returns a function
        that may wait a few times per batch.
    """
    few, many = count_waits(run_on(8)), count_waits(run_on(64))
    assert 0 < many <= few + 4


def test_no_synchronization_for_each_doc(bert_dir: Path, heads: str) -> None:
    """Neither in prediction nor in a training step. This excludes the listening pipes: on a GPU
    spaCy's tagger reads the loss of each doc.
    """
    nlp = make_nlp(bert_dir, ["tagger"])
    component, optimizer = nlp.get_pipe("transformer"), adam()
    listener = nlp.get_pipe("tagger").model.get_ref("tok2vec")

    def run_on(n_docs: int) -> Callable[[], object]:
        examples = make_examples(nlp, n_docs)
        docs = [example.predicted for example in examples]

        def run() -> None:
            component.set_annotations(docs, component.predict(docs))
            component.update(examples)
            tokvecs, backprop = listener.begin_update(docs)
            backprop(tokvecs)
            component.finish_update(optimizer)

        return run

    assert_not_for_each_doc(run_on)


def test_no_synchronization_for_each_doc_in_the_pipeline(bert_dir: Path) -> None:
    """With heads on the CPU only the encoder waits for the GPU."""
    nlp, optimizer = make_nlp(bert_dir, ["tagger"]), adam()

    def run_on(n_docs: int) -> Callable[[], object]:
        examples = make_examples(nlp, n_docs)
        texts = [example.text for example in examples]

        def run() -> None:
            list(nlp.pipe(texts, batch_size=n_docs))
            nlp.update(examples, sgd=optimizer)

        return run

    assert_not_for_each_doc(run_on)


@real_gpu
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


@real_gpu
@pytest.mark.skipif(
    multiprocessing.get_all_start_methods()[0] != "fork", reason="processes are spawned"
)
def test_a_forked_process_is_refused(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir)
    with pytest.raises(ValueError, match=r"ConfigError: .* on cuda cannot be used in a forked"):
        list(nlp.pipe(SENTENCES * 4, n_process=2, batch_size=4))


# As spaCy does it: the allocator belongs to the GPU that is in use already.
TRAIN = """
import sys
from thinc.api import require_gpu, set_gpu_allocator
from thinc.backends import context_pools
require_gpu(0)
set_gpu_allocator("pytorch")
from tests.util import adam, make_examples, make_nlp
nlp = make_nlp(sys.argv[1], ["tagger", "ner", "textcat"], device="cuda")
optimizer = adam(5e-3)
for _ in range(5):
    losses = nlp.update(make_examples(nlp), sgd=optimizer)
assert context_pools.get()["pytorch"].total_bytes() > 0
print(sorted(losses))
"""


def test_memory_of_cupy_from_torch(bert_dir: Path) -> None:
    """`gpu_allocator = "pytorch"`, which spaCy's templates have for transformers."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    command = [sys.executable, "-c", TRAIN, str(bert_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "['ner', 'tagger', 'textcat', 'transformer']" in done.stdout


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()
