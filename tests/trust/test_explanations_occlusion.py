"""`spacy_distil.explain` by occlusion, against a loop over single docs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.tokens import Doc

import spacy_distil
from spacy_distil.errors import ConfigError
from spacy_distil.trust.explanations.occlusion import HIDDEN
from tests.util import SENTENCES, encoder_of, initialize_nlp, make_examples, make_nlp

TEXT = "Ann visited Rome\n in spring .  We like unbelievable pizza in Oslo !"


@pytest.fixture(scope="module", params=["torch", "int8"])
def trained(request: pytest.FixtureRequest, torch_pipeline: Path, onnx_pipeline: Path) -> Any:
    """A trained tagger and text classifier, on each engine."""
    return spacy.load(torch_pipeline if request.param == "torch" else onnx_pipeline)


def log_odds(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def tag_log_odds(nlp: Any, doc: Doc, i: int, label: str) -> float:
    """Of the logits of the tagger's model."""
    logits = nlp.get_pipe("tagger").model.predict([doc])[0][i].astype("d")
    number = nlp.get_pipe("tagger").labels.index(label)
    return float(logits[number] - np.log(np.exp(np.delete(logits, number)).sum()))


def hide(nlp: Any, doc: Doc, i: int) -> Doc:
    """Process the same tokens with one of them hidden, alone."""
    words = [HIDDEN if token.i == i else token.text for token in doc]
    spaces = [bool(token.whitespace_) for token in doc]
    return nlp(Doc(nlp.vocab, words, spaces))


@pytest.mark.parametrize("label", ["travel", "food"])
def test_categories_against_a_loop(trained: Any, label: str) -> None:
    found = spacy_distil.explain(trained, TEXT, f"cats:{label}", "occlusion")
    doc = trained(TEXT)
    score = log_odds(doc.cats[label])
    expected = np.zeros(len(doc))
    for token in doc:
        if not token.is_space:
            expected[token.i] = score - log_odds(hide(trained, doc, token.i).cats[label])
    assert np.abs(expected).max() > 0.1
    assert found.score == pytest.approx(score, abs=1e-3)
    np.testing.assert_allclose(found.attributions, expected, atol=2e-3)
    spaces = [token.i for token in doc if token.is_space]
    assert spaces
    assert not found.attributions[spaces].any()


def test_tags_against_a_loop(trained: Any) -> None:
    doc = trained(TEXT)
    found = spacy_distil.explain(trained, TEXT, "tag", "occlusion")
    assert [each.target.start for each in found] == [t.i for t in doc if not t.is_space]
    for each in found[:3]:
        i, label = each.target.start, each.target.label
        assert label == doc[i].tag_
        score = tag_log_odds(trained, doc, i, label)
        assert each.score == pytest.approx(score, abs=1e-3)
        for token in doc:
            expected = 0.0
            if not token.is_space:
                hidden = hide(trained, doc, token.i)
                expected = score - tag_log_odds(trained, hidden, i, label)
            assert each.attributions[token.i] == pytest.approx(expected, abs=2e-3)


def test_auto_chooses_by_the_engine(torch_pipeline: Path, onnx_pipeline: Path) -> None:
    torch, int8 = spacy.load(torch_pipeline), spacy.load(onnx_pipeline)
    assert spacy_distil.explain(torch, TEXT).method == "integrated_gradients"
    assert spacy_distil.explain(int8, TEXT).method == "occlusion"
    with pytest.raises(ConfigError, match="on engine = 'onnx', which has no gradients"):
        spacy_distil.explain(int8, TEXT, method="integrated_gradients")


def test_batches_do_not_matter(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = spacy_distil.explain(trained, TEXT, "cats", "occlusion")
    monkeypatch.setattr("spacy_distil.trust.explanations.occlusion._BATCH_TOKENS", 30)
    again = spacy_distil.explain(trained, TEXT, "cats", "occlusion")
    np.testing.assert_allclose(again.attributions, found.attributions, atol=2e-3)


def test_entities(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, [], initialize=False)
    listener = {"@architectures": "spacy-distil.Listener.v1"}
    model = {"@architectures": "spacy.Tagger.v2", "tok2vec": listener}
    nlp.add_pipe("distil_ner", config={"model": model})
    initialize_nlp(nlp)
    gradients, occlusion = (
        spacy_distil.explain(nlp, SENTENCES[0], "ents", method)
        for method in ("integrated_gradients", "occlusion")
    )
    assert gradients
    for one, other in zip(gradients, occlusion, strict=True):
        assert one.target == other.target
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert other.attributions.any()


@pytest.mark.parametrize("pipes", [("textcat",), ("textcat_multilabel",), ("tagger",)])
def test_pipelines_without_our_encoder(pipes: tuple[str, ...]) -> None:
    """A CNN shared by listeners, a CNN inside of a pipe, and a bag of words."""
    nlp = spacy.blank("en")
    nlp.add_pipe("tok2vec")
    listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": 96}
    for pipe in pipes:
        nlp.add_pipe(pipe)
        if pipe == "tagger":
            model = {"@architectures": "spacy.Tagger.v2", "tok2vec": listener}
            nlp.add_pipe("tagger", name="listening", config={"model": model})
    nlp.initialize(lambda: make_examples(nlp))
    for _ in range(5):
        nlp.update(make_examples(nlp))
    found = spacy_distil.explain(nlp, "Ann visited \x07 Rome . \n")
    each = found[0] if isinstance(found, list) else found
    assert each.method == "occlusion"
    assert each.attributions[0]
    assert not each.attributions[[2, 5]].any()
    with pytest.raises(ConfigError, match="no encoder of a distil_transformer"):
        spacy_distil.explain(nlp, "Ann", method="integrated_gradients")


def test_norms_stay() -> None:
    """A CNN reads them: the norm of "n't" is "not"."""
    nlp = spacy.blank("en")
    nlp.add_pipe("tagger")
    nlp.initialize(lambda: make_examples(nlp))
    rng = np.random.default_rng(0)
    layer = nlp.get_pipe("tagger").model.get_ref("softmax")
    layer.set_param("W", rng.normal(0, 1, layer.get_param("W").shape).astype("f"))
    doc = nlp("We can't like it")
    assert doc[2].norm_ == "not"
    found = spacy_distil.explain(nlp, doc, "tag:2")
    assert found.score == pytest.approx(tag_log_odds(nlp, doc, 2, found.target.label), abs=1e-4)


def test_the_hidden_token_is_unknown_text(encoder_dirs: dict[str, Path]) -> None:
    for family, piece in (("bert", "[UNK]"), ("xlm-roberta", "<unk>"), ("deberta-v2", "[UNK]")):
        encoder = encoder_of(make_nlp(encoder_dirs[family]))
        (pieces,) = encoder.loaded.tokenizer([f"a {HIDDEN} b"])
        assert encoder.loaded.pieces[pieces.ids].tolist().count(piece) == 1, family


def test_a_very_long_text(trained: Any) -> None:
    """Of 300,000 characters."""
    text = "Ann visited Rome in spring . " * 10_350
    assert len(text) > 300_000
    with pytest.raises(ConfigError, match="once for each token, and this one has 62,100"):
        spacy_distil.explain(trained, text, "tag:3", "occlusion")
    part = trained.make_doc(text)[:40].as_doc()
    assert len(spacy_distil.explain(trained, part, "cats", "occlusion").doc) == 40
