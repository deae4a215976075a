"""All windows and all docs with gold learn, and nothing else does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from spacy.training.initialize import init_nlp
from spacy.training.loop import train
from thinc.api import Config

from spacy_distil.cli.configs import training_config
from spacy_distil.encoding import encode_docs
from tests.odd_input.texts import BATCHES, SETTINGS, Source, make_docs
from tests.util import WIDTH, adam, encoder_of, make_nlp, same, torch_model_of, weights_of

EMBEDDINGS = "embeddings.word_embeddings.weight"
FILLER = "of"
WINDOW, OVERLAP = 24, 6


@pytest.fixture(scope="module")
def nlp(bert_dir: Path) -> Any:
    """Make an encoder and a tagger. Tests must not change the weights."""
    return make_nlp(bert_dir, ["tagger"], window=WINDOW, overlap=OVERLAP)


def single_pieces(nlp: Any) -> list[str]:
    """Find words of one piece that no other word has."""
    tokenizer = encoder_of(nlp).loaded.tokenizer
    pieces = encoder_of(nlp).loaded.pieces
    words = [piece for piece in pieces if piece.isascii() and piece.isalpha() and len(piece) > 1]
    found = [w for w, p in zip(words, tokenizer(words), strict=True) if len(p.ids) == 1]
    assert FILLER in found
    return [word for word in found if word != FILLER]


def tagged(nlp: Any, words: Sequence[str], tags: Sequence[str]) -> Example:
    """Make an example. tags: "" for a token without gold."""
    return Example.from_dict(Doc(nlp.vocab, words=list(words)), {"tags": list(tags)})


def gradients(nlp: Any, examples: list[Example]) -> dict[str, np.ndarray]:
    """Return the gradients of the encoder's weights after an update without a step."""
    nlp.update(examples, sgd=False)
    return taken(nlp)


def taken(nlp: Any) -> dict[str, np.ndarray]:
    """Return the gathered gradients, and clear them."""
    found = {}
    for name, parameter in torch_model_of(nlp).named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad.numpy().copy()
            parameter.grad = None
    return found


def words_with_gradient(nlp: Any, examples: list[Example]) -> set[str]:
    """Return the pieces whose embeddings learn, without special ones."""
    found = gradients(nlp, examples)
    if not found:
        return set()
    rows = np.flatnonzero(found[EMBEDDINGS].any(axis=1))
    return {piece for piece in encoder_of(nlp).loaded.pieces[rows] if not piece.startswith("[")}


def windows_of(nlp: Any, words: Sequence[str]) -> list[set[str]]:
    """Return the words of each window."""
    encoder = encoder_of(nlp)
    docs = [Doc(nlp.vocab, words=list(words))]
    encoded = encode_docs(
        docs, encoder.loaded.tokenizer, window=WINDOW, overlap=OVERLAP, pooling="mean"
    )
    return [set(encoder.loaded.pieces[window]) for window in encoded.windows]


# Long docs


def test_all_parts_of_a_long_doc_train(nlp: Any) -> None:
    """Each tenth word is unique, up to the last."""
    unique = single_pieces(nlp)
    words = [word for each in unique for word in (*[FILLER] * 9, each)]
    assert len(windows_of(nlp, words)) > 20
    found = words_with_gradient(nlp, [tagged(nlp, words, ["NN"] * len(words))])
    assert found == {FILLER, *unique}


@pytest.mark.parametrize("place", [0, 10, 18, 23, 37, 40, -2, -1])
def test_gold_of_one_token_trains_its_windows(nlp: Any, place: int) -> None:
    """It trains both windows in an overlap, and no others, with any other docs in the batch."""
    words = single_pieces(nlp)[:50]
    tags = [""] * len(words)
    tags[place] = "NN"
    others = [tagged(nlp, [FILLER] * n, [""] * n) for n in (3, 30, 1)]
    windows = [window for window in windows_of(nlp, words) if words[place] in window]
    assert len(windows) == (2 if place in (18, 37) else 1)
    found = words_with_gradient(nlp, [*others[:2], tagged(nlp, words, tags), *others[2:]])
    assert found == set().union(*windows)


def test_each_token_reaches_its_own_pieces(nlp: Any) -> None:
    """No other token has a gradient."""
    words = single_pieces(nlp)[:50]
    model = nlp.get_pipe("transformer").model
    ids = [int(p.ids[0]) for p in encoder_of(nlp).loaded.tokenizer(words)]
    for place in range(0, len(words), 3):
        tokvecs, backprop = model.begin_update([Doc(nlp.vocab, words=words)])
        gradient = np.zeros_like(tokvecs[0])
        gradient[place] = np.linspace(-1, 1, WIDTH)
        backprop([gradient])
        assert taken(nlp)[EMBEDDINGS][ids[place]].any(), words[place]


def test_a_doc_of_20_000_tokens_is_one_update(bert_dir: Path) -> None:
    """With checkpointing no forward pass is too large, nor any in the backward pass."""
    nlp = make_nlp(bert_dir, ["tagger"], gradient_checkpointing=True, max_batch_pieces=2000)
    words = [*single_pieces(nlp)[:10] * 2000]
    last = single_pieces(nlp)[10]
    words[-1] = last
    model = torch_model_of(nlp)
    with patch.object(model, "forward", wraps=model.forward) as forward:
        found = words_with_gradient(nlp, [tagged(nlp, words, ["NN", "IN"] * 10_000)])
    lengths = [call.kwargs["input_ids"].numel() for call in forward.call_args_list]
    assert len(words) == 20_000
    assert found == {*words}
    assert max(lengths) <= 2000
    assert sum(lengths) > 2 * len(words)  # each once more in the backward pass

    before = weights_of(nlp)
    losses = nlp.update([tagged(nlp, words[:200], ["NN", "IN"] * 100)], sgd=adam())
    assert np.isfinite(losses["tagger"])
    assert not same(before, weights_of(nlp))


# Odd docs


def test_docs_without_pieces_change_nothing(nlp: Any) -> None:
    words = single_pieces(nlp)[:40]
    tags = ["NN", "IN", "", ""] * 10
    nothing = [tagged(nlp, spaces, ["NN"] * len(spaces)) for spaces in ([], [" "], ["\n", "  "])]
    alone = gradients(nlp, [tagged(nlp, words, tags)])
    together = gradients(nlp, [*nothing, tagged(nlp, words, tags), *nothing])
    assert same(alone, together, atol=1e-5)
    assert all(not gradient.any() for gradient in gradients(nlp, nothing).values())


@SETTINGS
@given(sources=BATCHES, seed=st.integers(0, 1000))
def test_gradients_of_a_batch_are_those_of_its_docs(
    nlp: Any, sources: list[Source], seed: int
) -> None:
    """They are the sum, for a random gradient of each token vector."""
    model, docs = nlp.get_pipe("transformer").model, make_docs(nlp, sources)
    rng = np.random.default_rng(seed)
    d_tokvecs = [rng.normal(size=(len(doc), WIDTH)).astype("f") for doc in docs]
    tokvecs, backprop = model.begin_update(docs)
    assert [each.shape for each in tokvecs] == [each.shape for each in d_tokvecs]
    backprop(d_tokvecs)
    together = taken(nlp)
    expected: dict[str, np.ndarray] = {}
    for doc, gradient in zip(docs, d_tokvecs, strict=True):
        _, backprop = model.begin_update([doc])
        backprop([gradient])
        for name, array in taken(nlp).items():
            expected[name] = expected.get(name, 0.0) + array
    assert together.keys() == expected.keys()
    for name, array in together.items():
        assert np.isfinite(array).all()
        scale = max(1.0, np.abs(array).max())
        np.testing.assert_allclose(array / scale, expected[name] / scale, rtol=0, atol=1e-5)


# Docs that are larger than a batch


@pytest.mark.parametrize("discard_oversize", [False, True])
def test_what_becomes_of_a_doc_larger_than_a_batch(
    bert_dir: Path, nlp: Any, tmp_path: Path, discard_oversize: bool
) -> None:
    """With the config that `init-config train` writes it is learned. The batcher of spaCy's
    quickstart drops it.
    """
    common, rare = single_pieces(nlp)[:5], single_pieces(nlp)[5:15]
    docs = [
        tagged(nlp, words, ["NN", "IN"] * (len(words) // 2)).reference
        for words in (*[common[:4]] * 6, [*common[:3], rare[-1]] * 25 + rare)
    ]
    DocBin(docs=docs).to_disk(tmp_path / "train.spacy")
    DocBin(docs=docs[:2]).to_disk(tmp_path / "dev.spacy")
    text = training_config(pipes=["tagger"], encoder=str(bert_dir))
    overrides: dict[str, Any] = {
        "paths.train": str(tmp_path / "train.spacy"),
        "paths.dev": str(tmp_path / "dev.spacy"),
        "components.transformer.model.window": WINDOW,
        "components.transformer.model.overlap": OVERLAP,
        "components.transformer.model.mixed_precision": False,
        "training.batcher.size": 40,
        "training.optimizer.L2": 0.0,
        "training.max_steps": 6,
        "training.eval_frequency": 6,
        "training.logger.console_output": False,
    }
    config = Config().from_str(text, overrides=overrides, interpolate=False)
    assert config["training"]["batcher"]["discard_oversize"] is False
    config["training"]["batcher"]["discard_oversize"] = discard_oversize
    trained, _ = train(init_nlp(config), None)

    before = load_file(bert_dir / "model.safetensors")[EMBEDDINGS]
    moved = np.flatnonzero((weights_of(trained)[EMBEDDINGS] != before).any(axis=1))
    words = {str(piece) for piece in encoder_of(trained).loaded.pieces[moved]}
    assert {*common[:4]} <= words
    assert ({*rare} <= words) == (not discard_oversize)
    assert bool(words & {*rare}) == (not discard_oversize)
