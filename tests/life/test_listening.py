"""Every pipe of spaCy that takes a `tok2vec` learns through the shared encoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.training import Example
from thinc.api import NumpyOps

from tests.life.corpus import FACTORIES, add_stock_pipes, annotations_of, make_annotated
from tests.util import (
    LISTENER,
    SENTENCES,
    STOCK_LISTENER,
    adam,
    make_nlp,
    same,
    torch_model_of,
    weights_of,
)

TEXTS = (*SENTENCES, "Ann left Oslo. They like pizza.", "", "  ", "We liked pieces")


def check_learning(
    bert_dir: Path, factories: Sequence[str], listener: dict[str, Any], path: Path
) -> None:
    """Check that the pipes learn the examples, that the encoder learns, and that all of it is
    saved.
    """
    nlp = make_nlp(bert_dir, initialize=False)
    add_stock_pipes(nlp, factories, listener)
    spacy.util.fix_random_seed(0)
    nlp.initialize(lambda: make_annotated(nlp))
    assert nlp.get_pipe("transformer").listening_components == list(factories)
    before, examples, optimizer = weights_of(nlp), make_annotated(nlp), adam(1e-2)
    for _ in range(18 if len(factories) == 1 else 24):
        nlp.update(examples, sgd=optimizer)
    assert not same(before, weights_of(nlp), atol=1e-3)
    scores = nlp.evaluate(make_annotated(nlp))
    for factory in factories:
        assert scores[FACTORIES[factory][1]] > 0.8, factory
    nlp.to_disk(path)
    loaded = spacy.load(path)
    for text in TEXTS:
        assert annotations_of(loaded(text)) == annotations_of(nlp(text))


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_pipe_learns_by_listening(factory: str, bert_dir: Path, tmp_path: Path) -> None:
    check_learning(bert_dir, [factory], LISTENER, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("listener", [LISTENER, STOCK_LISTENER], ids=["ours", "stock"])
def test_all_pipes_learn_together(bert_dir: Path, listener: dict[str, Any], tmp_path: Path) -> None:
    check_learning(bert_dir, list(FACTORIES), listener, tmp_path)


# Partly annotated corpora

KINDS = list(dict.fromkeys(annotation for annotation, _ in FACTORIES.values()))


def by_kind(nlp: Any) -> dict[str, list[Example]]:
    """Docs with one kind of annotation each, and docs with none, two of which are empty.

    The last of each kind have one text: the gradient of spaCy's transition models contains the
    vector of a batch's last token wherever a feature of a state is missing.
    """
    docs = {kind: make_annotated(nlp, 2, start=2 * i, keep=[kind]) for i, kind in enumerate(KINDS)}
    empty = [Example.from_dict(nlp.make_doc(""), {}) for _ in range(2)]
    docs["nothing"] = [*empty, *make_annotated(nlp, 2, start=50, keep=[])]
    for kind, examples in docs.items():
        examples += make_annotated(nlp, 1, start=99, keep=[kind] if kind in KINDS else [])
    return docs


def mix(docs: dict[str, list[Example]]) -> list[Example]:
    """Put all docs in one batch, one of each kind in turn."""
    return [each for row in zip_longest(*docs.values()) for each in row if each is not None]


def make_all(bert_dir: Path) -> Any:
    """Make a pipeline of all pipes, with the same weights each time."""
    nlp = make_nlp(bert_dir, initialize=False)
    add_stock_pipes(nlp, list(FACTORIES))
    nlp.initialize(lambda: make_annotated(nlp))
    for name in FACTORIES:
        rng = np.random.default_rng(len(name))
        for node in nlp.get_pipe(name).model.walk():
            for key in node.param_names:
                if node.has_param(key):
                    shape = node.get_param(key).shape
                    node.set_param(key, rng.normal(0, 0.1, shape).astype("f"))
    return nlp


def gradients(nlp: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the gradients that pipes and the encoder have gathered, each as a row."""
    rows = {}
    for name in names:
        nodes = list(nlp.get_pipe(name).model.walk())
        rows[name] = np.concatenate(
            [n.get_grad(key).ravel() for n in nodes for key in n.param_names if n.has_grad(key)]
        )
    rows["transformer"] = np.concatenate(
        [
            (np.zeros(p.shape) if p.grad is None else p.grad.numpy()).ravel()
            for p in torch_model_of(nlp).parameters()
        ]
    )
    return rows


def update_each(nlp: Any, batches: Sequence[list[Example]]) -> dict[str, np.ndarray]:
    """Gather the gradients of some batches, without a step."""
    for batch in batches:
        nlp.update(batch, sgd=False)
    nlp.get_pipe("transformer")._close()
    return gradients(nlp, nlp.pipe_names[1:])


def test_gradients_of_a_mixed_batch_are_those_of_its_parts(
    bert_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Dropout of a tenth is built into spaCy's transition models.
    monkeypatch.setattr(NumpyOps, "get_dropout_mask", lambda ops, shape, _: ops.xp.ones(shape, "f"))
    mixed, parts = make_all(bert_dir), make_all(bert_dir)
    found = update_each(mixed, [mix(by_kind(mixed))])
    expected = update_each(parts, list(by_kind(parts).values()))
    for name, gradient in expected.items():
        scale = np.abs(gradient).max()
        assert scale > 1e-3, name
        np.testing.assert_allclose(
            found[name] / scale, gradient / scale, rtol=0, atol=2e-5, err_msg=name
        )
