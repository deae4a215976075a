"""What training keeps between forward and backward, and what happens where it is too much."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from thinc.api import NumpyOps

from tests.util import SENTENCES, make_examples, make_nlp, same, torch_model_of, weights_of

OPS = NumpyOps()


def gradients(nlp: Any, seed: int = 0) -> dict[str, np.ndarray]:
    """Of the sum of the squared vectors of a doc of several windows, with dropout."""
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


def kept_bytes(nlp: Any) -> int:
    """Of all tensors that wait for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself, an output would keep the graph that keeps it

    weights = {p.untyped_storage().data_ptr() for p in torch_model_of(nlp).parameters()}
    doc = nlp.make_doc(" ".join(SENTENCES * 3))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        nlp.get_pipe("transformer").model.begin_update([doc])
    return sum(size for pointer, size in kept.items() if pointer not in weights)


def test_checkpointing_gives_the_same_gradients(dropout_dir: Path) -> None:
    """With dropout: the second forward drops what the first one dropped."""
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


# Each attempt finds about half of the memory that it would take without its remedy, and twice what
# it takes with it.
SCRIPT = """
import resource, sys
import psutil
from tests.util import SENTENCES, make_nlp
from spacy_distil.errors import OutOfMemoryError

def limit(nlp, more):
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))

def attempt(what, n_docs, more, **settings):
    nlp = make_nlp(sys.argv[1], **settings)
    docs = [nlp.make_doc(" ".join(SENTENCES * 8)) for _ in range(n_docs)]
    encoder = nlp.get_pipe("transformer").model
    limit(nlp, more)
    try:
        if what == "predict":
            encoder.predict(docs)
        else:
            tokvecs, backprop = encoder.begin_update(docs)
            backprop(tokvecs)
        print(what, "went through")
    except OutOfMemoryError as error:
        print(what, "failed:", error)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

attempt("predict", 80, 130_000_000, max_batch_pieces=10**9)
attempt("predict", 80, 130_000_000, max_batch_pieces=1000)
attempt("train", 160, 600_000_000, max_batch_pieces=1000)
attempt("train", 160, 600_000_000, max_batch_pieces=1000, gradient_checkpointing=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_running_out_of_memory_names_the_batch_and_the_remedy(bert_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(bert_dir)],
        capture_output=True,
        text=True,
        timeout=120,
        # Its threads would each reserve memory, and abort the process where there is none.
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = re.split(r"^(?=predict |train )", done.stdout, flags=re.M)[1:]
    assert [part.split(":")[0].splitlines()[0] for part in results] == [
        "predict failed",
        "predict went through",
        "train failed",
        "train went through",
    ]
    assert re.search(r"cpu has no memory left for encoding 2080 windows of 72 pieces", results[0])
    assert "Set max_batch_pieces below 1,000,000,000" in results[0]
    assert "160 docs, 96,000 tokens and 285,920 pieces" in results[2]
    assert "its longest doc has 600 tokens" in results[2]
    assert "Set gradient_checkpointing = true" in results[2]
