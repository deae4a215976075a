"""Memory that training keeps between forward and backward, and errors if it is not enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spacy_distil.errors import OutOfMemoryError
from tests.util import SENTENCES, make_examples, make_nlp, same, torch_model_of, weights_of


def gradients(nlp: Any, seed: int = 0) -> dict[str, np.ndarray]:
    """Return gradients of the sum of squared vectors of a doc of several windows, with dropout."""
    torch.manual_seed(seed)
    doc = nlp.make_doc(" ".join(SENTENCES))
    tokvecs, backprop = nlp.get_pipe("transformer").model.begin_update([doc])
    backprop(tokvecs)
    found = {}
    for name, parameter in torch_model_of(nlp).named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad.numpy().copy()
            parameter.grad = None
    return found


@contextmanager
def counted_memory(nlp: Any, count: Callable[[int], None]) -> Iterator[None]:
    """Call `count` with the number of bytes that wait for the backward pass whenever it grows."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in torch_model_of(nlp).parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            count(sum(kept.values()))
        return tensor.detach()  # an output itself would keep the graph that keeps it

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def kept_bytes(nlp: Any) -> int:
    """Count the bytes that wait for the backward pass of a doc of several windows."""
    counts = [0]
    doc = nlp.make_doc(" ".join(SENTENCES * 3))
    with counted_memory(nlp, counts.append):
        nlp.get_pipe("transformer").model.begin_update([doc])
    return counts[-1]


def test_checkpointing_gives_the_same_gradients(dropout_dir: Path) -> None:
    """The second forward pass drops the same numbers as the first."""
    settings: dict[str, Any] = {"window": 24, "overlap": 4, "max_batch_pieces": 48}
    plain = make_nlp(dropout_dir, **settings)
    checkpointing = make_nlp(dropout_dir, **settings, gradient_checkpointing=True)
    expected = gradients(plain)
    assert not same(expected, gradients(plain, seed=1))
    found = gradients(checkpointing)
    assert same(found, expected)
    assert not torch_model_of(checkpointing).training


def test_checkpointing_keeps_next_to_nothing(bert_dir: Path) -> None:
    plain = kept_bytes(make_nlp(bert_dir))
    assert kept_bytes(make_nlp(bert_dir, gradient_checkpointing=True)) < plain / 100


def test_checkpointing_trains_and_predicts_alike(bert_dir: Path) -> None:
    trained = []
    for checkpointing in (False, True):
        nlp = make_nlp(bert_dir, ["tagger"], gradient_checkpointing=checkpointing)
        optimizer = nlp.resume_training()
        for _ in range(3):
            nlp.update(make_examples(nlp), sgd=optimizer)
        trained.append((weights_of(nlp), nlp(SENTENCES[0]).tensor))
    assert same(trained[0][0], trained[1][0])
    np.testing.assert_allclose(trained[0][1], trained[1][1], rtol=0, atol=1e-5)


def test_hidden_states_learn_under_checkpointing(bert_dir: Path) -> None:
    found = []
    for checkpointing in (False, True):
        nlp = make_nlp(bert_dir, gradient_checkpointing=checkpointing)
        hidden, backprop = nlp.get_pipe("transformer").update_hidden(make_examples(nlp), [1, 0])
        backprop(hidden)
        module = torch_model_of(nlp)
        found.append(
            {n: p.grad.numpy() for n, p in module.named_parameters() if p.grad is not None}
        )
    assert same(found[0], found[1])


@contextmanager
def limited_memory(nlp: Any, *, forward: int, kept: int) -> Iterator[None]:
    """Let torch run out of memory in a forward pass of more than `forward` padded pieces, and if
    more than `kept` bytes wait for the backward pass.
    """

    def allocate(exceeds: bool) -> None:
        if exceeds:
            torch.empty(2**60, dtype=torch.uint8)  # raises the error that the allocator raises

    def before_forward(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        allocate(kwargs["input_ids"].numel() > forward)

    def on_kept(n_bytes: int) -> None:
        allocate(n_bytes > kept)

    model = torch_model_of(nlp)
    handle = model.register_forward_pre_hook(before_forward, with_kwargs=True)
    try:
        with counted_memory(nlp, on_kept):
            yield
    finally:
        handle.remove()


def test_too_large_a_forward_names_its_size_and_the_setting(bert_dir: Path) -> None:
    text = " ".join(SENTENCES * 8)
    nlp = make_nlp(bert_dir, max_batch_pieces=10**9)
    docs = [nlp.make_doc(text) for _ in range(2)]
    with limited_memory(nlp, forward=1000, kept=0), pytest.raises(OutOfMemoryError) as error:
        nlp.get_pipe("transformer").model.predict(docs)
    assert "cpu has no memory left for encoding 52 windows of 72 pieces" in str(error.value)
    assert "Set max_batch_pieces below 1,000,000,000" in str(error.value)

    nlp = make_nlp(bert_dir, max_batch_pieces=1000)
    with limited_memory(nlp, forward=1000, kept=0):
        nlp.get_pipe("transformer").model.predict(docs)


def test_too_large_a_batch_names_its_size_and_the_settings(bert_dir: Path) -> None:
    text = " ".join(SENTENCES * 8)
    nlp = make_nlp(bert_dir, max_batch_pieces=1000)
    docs = [nlp.make_doc(text) for _ in range(2)]
    model = nlp.get_pipe("transformer").model
    kept: list[int] = []
    with counted_memory(nlp, kept.append):
        model.begin_update(docs)
    with (
        limited_memory(nlp, forward=1000, kept=kept[-1] // 2),
        pytest.raises(OutOfMemoryError) as error,
    ):
        model.begin_update(docs)
    message = str(error.value)
    assert "2 docs, 1,200 tokens and 3,574 pieces" in message
    assert "its longest doc has 600 tokens" in message
    assert "Set gradient_checkpointing = true" in message

    nlp = make_nlp(bert_dir, max_batch_pieces=1000, gradient_checkpointing=True)
    with limited_memory(nlp, forward=1000, kept=kept[-1] // 2):
        tokvecs, backprop = nlp.get_pipe("transformer").model.begin_update(docs)
        backprop(tokvecs)
