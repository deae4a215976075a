from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy

from spacy_distil.component.shim import get_encoder
from spacy_distil.errors import ConfigError
from tests.util import (
    SENTENCES,
    WIDTH,
    adam,
    copied,
    head_config,
    make_examples,
    make_nlp,
    registry,
    same,
    weights_of,
)


@pytest.fixture
def inside(bert_dir: Path) -> Any:
    """Make a pipeline whose tagger has an encoder inside."""
    nlp = spacy.blank("en")
    encoder = {"@architectures": "spacy-distil.DistilTransformer.v1", "name": str(bert_dir)}
    nlp.add_pipe("tagger", config=head_config("tagger", encoder | {"overlap": 8}))
    nlp.initialize(lambda: make_examples(nlp))
    return nlp


def test_it_is_a_tok2vec(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir)
    docs = [nlp.make_doc(text) for text in ("", *SENTENCES)]
    model = nlp.get_pipe("transformer").model
    assert model.get_dim("nO") == WIDTH
    for doc, vectors in zip(docs, model.predict(docs), strict=True):
        assert vectors.shape == (len(doc), WIDTH)
    assert model.predict([]) == []
    vectors, backprop = model.begin_update([])
    assert (vectors, backprop([])) == ([], [])


def test_an_encoder_inside_a_pipe_learns(inside: Any) -> None:
    engine: Any = get_encoder(inside.get_pipe("tagger").model.get_ref("tok2vec")).engine
    before = copied(engine.model)
    optimizer = adam(1e-2)
    losses = []
    for _ in range(15):
        losses.append(inside.update(make_examples(inside), sgd=optimizer)["tagger"])
    assert not same(before, copied(engine.model), atol=1e-4)
    assert losses[-1] < 0.8 * losses[0]


def test_rehearsal_leaves_an_encoder_inside_a_pipe_alone(inside: Any) -> None:
    """As with a shared encoder. The next update does not apply the gradients of rehearsal."""
    optimizer = inside.resume_training()
    encoder = get_encoder(inside.get_pipe("tagger").model.get_ref("tok2vec"))
    engine: Any = encoder.engine
    inside.update(make_examples(inside), sgd=optimizer)  # away from what it was
    before = copied(engine.model)
    losses = inside.rehearse(make_examples(inside, 4), sgd=optimizer)
    assert losses["tagger"] > 0
    assert same(before, copied(engine.model), atol=0)
    assert all(p.grad is None for p in engine.model.parameters())
    inside.get_pipe("tagger").finish_update(optimizer)
    assert same(before, copied(engine.model), atol=0)


def test_a_pipe_with_an_encoder_inside_is_saved(inside: Any, tmp_path: Path) -> None:
    inside.to_disk(tmp_path)
    loaded: Any = spacy.load(tmp_path)
    for text in SENTENCES:
        a, b = inside.make_doc(text), loaded.make_doc(text)
        for x, y in zip(
            inside.get_pipe("tagger").predict([a]),
            loaded.get_pipe("tagger").predict([b]),
            strict=True,
        ):
            np.testing.assert_array_equal(x, y)


def test_a_frozen_encoder_does_not_learn(bert_dir: Path) -> None:
    """Even in training mode and with a gradient."""
    for settings in ({"frozen": True}, {"learn_rate_scale": 0.0}):
        nlp = make_nlp(bert_dir, **settings)
        before = weights_of(nlp)
        model = nlp.get_pipe("transformer").model
        vectors, backprop = model.begin_update([nlp.make_doc(SENTENCES[0])])
        backprop(vectors)
        model.finish_update(adam())
        assert same(before, weights_of(nlp), atol=0)


def test_the_optimizer_must_be_adamw(bert_dir: Path) -> None:
    for optimizer in (
        registry.optimizers.get("SGD.v1")(0.1),
        registry.optimizers.get("RAdam.v1")(0.1),
        registry.optimizers.get("Adam.v1")(0.1, L2=0.1, L2_is_weight_decay=False),
    ):
        nlp = make_nlp(bert_dir)
        model = nlp.get_pipe("transformer").model
        vectors, backprop = model.begin_update([nlp.make_doc(SENTENCES[0])])
        backprop(vectors)
        with pytest.raises(ConfigError, match=r"Adam\.v1.*L2_is_weight_decay = true"):
            model.finish_update(optimizer)


def test_steps_follow_the_optimizer(bert_dir: Path) -> None:
    """Learning rate, its schedule, learn_rate_scale and layer_decay: the first step of Adam moves
    each weight by the learning rate.
    """
    nlp = make_nlp(bert_dir, learn_rate_scale=0.5, layer_decay=0.25)
    optimizer = registry.optimizers.get("Adam.v1")(iter([0.1, 0.01]), L2=0.0, grad_clip=0.0)
    optimizer.step_schedules()
    expected = 0.5 * optimizer.learn_rate
    model = nlp.get_pipe("transformer").model
    before = weights_of(nlp)
    vectors, backprop = model.begin_update([nlp.make_doc(text) for text in SENTENCES])
    backprop([np.random.default_rng(0).normal(size=each.shape).astype("f") for each in vectors])
    model.finish_update(optimizer)
    after = weights_of(nlp)
    for name, below in (
        ("encoder.layer.1.output.dense.weight", 0),
        ("encoder.layer.0.output.dense.weight", 1),
        ("embeddings.position_embeddings.weight", 2),
    ):
        moved = np.abs(after[name] - before[name]).max()
        assert moved == pytest.approx(expected * 0.25**below, rel=1e-3)
