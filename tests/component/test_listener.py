from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import spacy

from spacy_distil.component.listener import DistilListener, Listener
from spacy_distil.errors import ConfigError
from tests.util import WIDTH, adam, make_examples, make_nlp


def test_the_width_is_inferred(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"], initialize=False)
    listener = nlp.get_pipe("tagger").model.get_ref("tok2vec")
    assert isinstance(listener, DistilListener)
    assert listener.maybe_get_dim("nO") is None
    nlp.initialize(lambda: make_examples(nlp))
    assert listener.get_dim("nO") == WIDTH


def test_it_is_registered() -> None:
    assert spacy.registry.architectures.get("spacy-distil.Listener.v1") is Listener


def test_it_listens_to_the_named_component_alone(bert_dir: Path) -> None:
    for upstream, heard in (("*", True), ("transformer", True), ("other", False)):
        listener = {"@architectures": "spacy-distil.Listener.v1", "upstream": upstream}
        nlp = make_nlp(bert_dir, ["tagger"], listener=listener, initialize=False)
        assert bool(nlp.get_pipe("transformer").listeners) is heard


def test_a_frozen_encoder_that_does_not_annotate_is_named(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"])
    with pytest.raises(ConfigError, match=r"'\*', which is frozen.*annotating_components"):
        nlp.update(make_examples(nlp), exclude=["transformer"], sgd=adam())


def test_docs_without_vectors_are_zero_in_prediction(bert_dir: Path) -> None:
    """The same as with spaCy's listener: a pipe that runs without its encoder gives some result."""
    nlp = make_nlp(bert_dir, ["tagger"])
    listener = nlp.get_pipe("tagger").model.get_ref("tok2vec")
    doc = nlp.make_doc("We like pizza")
    np.testing.assert_array_equal(listener.predict([doc])[0], np.zeros((3, WIDTH)))
