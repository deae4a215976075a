"""Predictions beside the truth: of the right documents, whatever the batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example

from spacy_distil.report.reliability.collecting import collect, judge
from tests.util import LISTENER, adam, add_heads, initialize_nlp, make_examples, make_nlp

PIPES = {"tagger", "morphologizer", "distil_ner", "textcat", "textcat_multilabel"}


@pytest.fixture(scope="module")
def nlp(bert_dir: Path) -> Language:
    nlp = make_nlp(bert_dir, ["tagger", "morphologizer"], initialize=False)
    model = {"@architectures": "spacy.Tagger.v2", "tok2vec": dict(LISTENER)}
    nlp.add_pipe("distil_ner", config={"model": model})
    add_heads(nlp, ["textcat", "textcat_multilabel", "ner"])
    initialize_nlp(nlp)
    examples = make_examples(nlp, 32)
    for _ in range(5):
        nlp.update(examples, sgd=adam(0.005))
    return nlp


def read(nlp: Language) -> list[Example]:
    """Annotated documents, and among them some without tokens or annotation."""
    examples = make_examples(nlp, 12, start=50)
    empty = Example(nlp.make_doc(""), Doc(nlp.vocab))
    plain = Example(nlp.make_doc("Ann likes Rome"), Doc(nlp.vocab, words=["Ann", "likes", "Rome"]))
    return [empty, *examples[:3], plain, empty, *examples[3:], plain]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_documents_of_predictions(nlp: Language, batch_size: int) -> None:
    found = judge(nlp, read(nlp), batch_size)
    assert {*found} == PIPES
    counts = {name: np.bincount(own.docs, minlength=16) for name, own in found.items()}
    truths = {name: np.bincount(own.loss_docs, own.loss_counts, 16) for name, own in found.items()}
    for i, example in enumerate(read(nlp)):
        alone = judge(nlp, [example], 1)
        for name in PIPES:
            if name not in alone:
                assert counts[name][i] == truths[name][i] == 0, (name, i)
                continue
            rows = found[name].docs == i
            for key in ("confidence", "correct", "squares"):
                expected = getattr(alone[name], key)
                np.testing.assert_allclose(getattr(found[name], key)[rows], expected, atol=1e-5)
            rows = found[name].loss_docs == i
            np.testing.assert_allclose(
                found[name].losses[rows].sum(), alone[name].losses.sum(), rtol=1e-4
            )
            assert truths[name][i] == alone[name].loss_counts.sum()
    collected = collect(nlp, read(nlp), batch_size)
    assert collected.n_docs == 16
    for name, evidence in collected.evidence.items():
        np.testing.assert_allclose(evidence.judge().confidence, found[name].confidence, atol=1e-6)
        assert evidence.judge().docs.tolist() == found[name].docs.tolist()


def test_right_predictions_are_the_ones_that_spacy_counts(nlp: Language) -> None:
    found = judge(nlp, make_examples(nlp, 40, start=100), 16)
    scores: dict[str, Any] = nlp.evaluate(make_examples(nlp, 40, start=100))
    assert found["tagger"].correct.mean() == pytest.approx(scores["tag_acc"])
    # `ner` keeps the entities that `distil_ner` has found, and adds some of its own.
    with nlp.select_pipes(disable=["ner"]):
        scores = nlp.evaluate(make_examples(nlp, 40, start=100))
    assert found["distil_ner"].correct.mean() == pytest.approx(scores["ents_p"])


def test_pipelines_without_probabilities() -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    assert judge(nlp, make_examples(nlp, 3), 2) == {}
    assert judge(nlp, [], 2) == {}
