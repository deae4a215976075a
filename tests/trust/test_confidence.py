"""`spacy_distil.confidence` against softmaxes written out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.tokens import Span
from spacy.training import Example

import spacy_distil
from spacy_distil.errors import ConfigError
from tests.util import LISTENER, SENTENCES, add_heads, initialize_nlp, make_nlp

TEXTS = [*SENTENCES, "", " \n "]


@pytest.fixture(scope="module")
def nlp(bert_dir: Path) -> Any:
    nlp = make_nlp(bert_dir, ["tagger", "morphologizer"], initialize=False)
    model = {"@architectures": "spacy.Tagger.v2", "tok2vec": dict(LISTENER)}
    nlp.add_pipe("distil_ner", config={"model": model})
    add_heads(nlp, ["textcat", "textcat_multilabel", "ner"])
    initialize_nlp(nlp)
    return nlp


def test_every_pipe_that_can_tell(nlp: Any) -> None:
    docs = [*nlp.pipe(TEXTS)]
    found = spacy_distil.confidence(nlp, docs)
    assert [*found[0]] == ["tagger", "morphologizer", "distil_ner", "textcat", "textcat_multilabel"]
    for doc, own in zip(docs, found, strict=True):
        for name in ("tagger", "morphologizer"):
            expected = []
            if len(doc):
                logits = nlp.get_pipe(name).model.predict([doc])[0].astype("d")
                probs = np.exp(logits - logits.max(1, keepdims=True))
                expected = (probs / probs.sum(1, keepdims=True)).max(axis=1)
            np.testing.assert_allclose(own[name], expected, rtol=1e-5)
        (entities,) = nlp.get_pipe("distil_ner").probabilities([doc])
        np.testing.assert_allclose(own["distil_ner"], entities, rtol=1e-6)
        assert len(entities) == len(doc.ents)
        # Both have the same labels, so doc.cats has the scores of the second one.
        if len(doc):  # spaCy gives an empty doc alone zeros
            (exclusive,) = nlp.get_pipe("textcat").predict([doc])
            assert own["textcat"] == pytest.approx([max(exclusive)], rel=1e-5)
        yes = [doc.cats[label] for label in nlp.get_pipe("textcat_multilabel").labels]
        assert own["textcat_multilabel"] == pytest.approx([max(p, 1 - p) for p in yes], rel=1e-5)
        alone = spacy_distil.confidence(nlp, doc)
        assert [*alone] == [*own]
        for name, value in own.items() if len(doc) else ():
            np.testing.assert_allclose(alone[name], value, rtol=1e-4, atol=1e-6)


def test_a_temperature_counts(nlp: Any) -> None:
    doc = nlp(TEXTS[0])
    before = spacy_distil.confidence(nlp, doc)["tagger"]
    layer = nlp.get_pipe("tagger").model.get_ref("softmax")
    layer.attrs["softmax_temperature"] = 100.0
    after = spacy_distil.confidence(nlp, doc)["tagger"]
    layer.attrs["softmax_temperature"] = 1.0
    n_labels = len(nlp.get_pipe("tagger").labels)
    assert (after < before).all()
    np.testing.assert_allclose(after, 1 / n_labels, atol=0.02)


def test_docs_that_were_not_processed(nlp: Any) -> None:
    with pytest.raises(ConfigError, match="Without its encoder"):
        spacy_distil.confidence(nlp, nlp.make_doc("Ann"))
    assert spacy_distil.confidence(nlp, []) == []


def test_a_softmax_over_spans_is_none_over_tokens() -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("spancat_singlelabel")
    doc = nlp.make_doc("Ann visited Rome")
    doc.spans["sc"] = [Span(doc, 0, 1, "PER")]
    nlp.initialize(lambda: [Example(nlp.make_doc(doc.text), doc)])
    assert spacy_distil.confidence(nlp, nlp(doc.text)) == {}
