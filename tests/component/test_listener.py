from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.tokens import Doc
from thinc.api import Config

from spacy_distil.component.listener import DistilListener, Listener, listeners_in
from spacy_distil.errors import ConfigError
from tests.life.corpus import add_stock_pipes, annotations_of
from tests.util import (
    LISTENER,
    SENTENCES,
    STOCK_LISTENER,
    WIDTH,
    adam,
    initialize_nlp,
    make_examples,
    make_nlp,
    same,
    weights_of,
)


@pytest.fixture
def nlp(bert_dir: Path) -> Any:
    return make_nlp(bert_dir, ["tagger"])


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


# Updates without the encoder


def test_a_frozen_encoder_that_does_not_annotate_is_named(nlp: Any) -> None:
    message = (
        r"'tagger' reads the vectors of 'transformer', which has set no .* annotating_components.*"
        r"select_pipes\(enable=\[\"transformer\", \"tagger\"\]\).* annotates=\[\"transformer\"\]"
    )
    with pytest.raises(ConfigError, match=message):
        nlp.update(make_examples(nlp), exclude=["transformer"], sgd=adam())
    with (
        nlp.select_pipes(enable=["tagger"]),
        pytest.raises(ConfigError, match=message),
    ):
        nlp.update(make_examples(nlp), sgd=adam())


@pytest.mark.parametrize("listener", [LISTENER, STOCK_LISTENER], ids=["ours", "stock"])
def test_the_advice_for_a_loop_works(bert_dir: Path, listener: dict[str, Any]) -> None:
    nlp = make_nlp(bert_dir, ["tagger", "ner"], listener=listener)
    encoder, before = weights_of(nlp), nlp.get_pipe("tagger").model.to_bytes()
    with nlp.select_pipes(enable=["transformer", "tagger"]):
        nlp.update(
            make_examples(nlp), sgd=adam(), annotates=["transformer"], exclude=["transformer"]
        )
    assert same(encoder, weights_of(nlp), atol=0)
    assert before != nlp.get_pipe("tagger").model.to_bytes()


def test_a_pipe_that_annotates_without_its_encoder_is_named(bert_dir: Path) -> None:
    """It would annotate from zeros, though the encoder learns."""
    nlp = make_nlp(bert_dir, ["tagger"])
    with pytest.warns(UserWarning, match=r"'tagger' reads .* annotates=\[\"transformer\"\]"):
        nlp.update(make_examples(nlp), sgd=adam(), annotates=["tagger"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nlp.update(make_examples(nlp), sgd=adam(), annotates=["transformer", "tagger"])


def test_a_config_in_which_a_pipe_annotates_without_its_encoder_is_refused(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"], initialize=False)
    nlp.config["training"]["annotating_components"] = ["tagger"]
    with pytest.raises(ConfigError, match=r"annotating_components has 'tagger'.*Add 'transformer'"):
        nlp.initialize(lambda: make_examples(nlp))
    nlp.config["training"]["annotating_components"] = ["transformer", "tagger"]
    nlp.initialize(lambda: make_examples(nlp))


# Predictions without the encoder

HEADS = ("tagger", "ner", "textcat", "distil_ner")


def save_pipeline(encoder_dir: Path, listener: dict[str, Any], path: Path) -> Path:
    nlp = make_nlp(encoder_dir, HEADS[:3], listener=listener, initialize=False)
    add_stock_pipes(nlp, ["distil_ner"], listener)
    initialize_nlp(nlp)
    nlp.to_disk(path)
    return path


@pytest.fixture(scope="module")
def saved(bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same pipeline with our listeners and with spaCy's."""
    listeners = {"ours": LISTENER, "stock": STOCK_LISTENER}
    root = tmp_path_factory.mktemp("saved")
    return {
        name: save_pipeline(bert_dir, listener, root / name) for name, listener in listeners.items()
    }


def sourced(nlp: Any, name: str) -> Any:
    blank = spacy.blank("en")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\[W113\]")
        blank.add_pipe(name, source=nlp)
    return blank


def sourced_by_config(path: Path, name: str) -> Any:
    config = {
        "nlp": {"lang": "en", "pipeline": [name]},
        "components": {name: {"source": str(path)}},
    }
    return spacy.util.load_model_from_config(Config(config), auto_fill=True)


def with_pipes_selected(nlp: Any, name: str) -> Any:
    nlp.select_pipes(enable=[name])
    return nlp


def without_the_encoder(nlp: Any) -> Any:
    nlp.remove_pipe("transformer")
    return nlp


# How a pipe comes to stand without its encoder.
ALONE: dict[str, Callable[[Path, str], Any]] = {
    "enable": lambda path, name: spacy.load(path, enable=[name]),
    "disable": lambda path, name: spacy.load(path, disable=["transformer"]),
    "select_pipes": lambda path, name: with_pipes_selected(spacy.load(path), name),
    "remove_pipe": lambda path, name: without_the_encoder(spacy.load(path)),
    "source": lambda path, name: sourced(spacy.load(path), name),
    "source in a config": sourced_by_config,
    "exclude": lambda path, name: spacy.load(
        path, exclude=["transformer", *(each for each in HEADS if each != name)]
    ),
}


@pytest.mark.parametrize("way", ALONE)
@pytest.mark.parametrize("kind", ["ours", "stock"])
@pytest.mark.parametrize("name", ["tagger", "distil_ner"])
def test_a_pipe_without_its_encoder_does_not_predict(
    saved: dict[str, Path], way: str, kind: str, name: str
) -> None:
    nlp = ALONE[way](saved[kind], name)
    if (way, kind, name) == ("exclude", "stock", "tagger"):
        nlp("Ann visited Rome.")  # from zeros: nothing of ours is there, as the docs say
        return
    for predict in (nlp, lambda text: list(nlp.pipe(["", text, text]))):
        with pytest.raises(ConfigError, match=r"Without its encoder, .* from zeros"):
            predict("Ann visited Rome.")


@pytest.mark.parametrize("name", HEADS)
def test_the_error_names_pipe_and_encoder_and_the_way_out(
    saved: dict[str, Path], name: str
) -> None:
    nlp = spacy.load(saved["ours"], enable=[name])
    call = rf'nlp\.replace_listeners\("transformer", "{name}", \["model.tok2vec"\]\)'
    message = (
        rf"'{name}' would predict from zeros: .* begins with 'Ann visited Rome\.' has no vectors "
        rf"of 'transformer'\. Enable .*{call}.*components\.{name}\.model"
    )
    with pytest.raises(ConfigError, match=message):
        nlp("Ann visited Rome.")
    whole = spacy.load(saved["ours"])
    expected = annotations_of(whole("Ann visited Rome."))
    whole.replace_listeners("transformer", name, ["model.tok2vec"])
    found = annotations_of(sourced(whole, name)("Ann visited Rome."))
    key = {"tagger": "tokens", "textcat": "cats"}.get(name, "entities")
    if name != "distil_ner":  # behind the `ner`, whose entities stay
        assert found[key] == expected[key]


@pytest.mark.parametrize("way", ["enable", "exclude"])
def test_those_who_want_zeros_get_them(
    bert_dir: Path, saved: dict[str, Path], tmp_path: Path, way: str
) -> None:
    path = save_pipeline(bert_dir, {**LISTENER, "without_encoder": "zeros"}, tmp_path)
    for name in HEADS:
        nlp = ALONE[way](path, name)
        (listener,) = listeners_in(nlp.get_pipe(name))
        docs = [nlp.make_doc("We like pizza"), nlp.make_doc("")]
        vectors = listener.predict(docs)
        np.testing.assert_array_equal(vectors[0], np.zeros((3, WIDTH), dtype="f"))
        assert vectors[1].shape == (0, WIDTH)
        nlp("We like pizza")
    whole, reference = spacy.load(path), spacy.load(saved["ours"])
    assert annotations_of(whole("Ann")) == annotations_of(reference("Ann"))
    with pytest.raises(ConfigError, match=r"which has set no doc\.tensor"):
        whole.update(make_examples(whole), exclude=["transformer"], sgd=adam())


def test_a_wrong_value_for_those_who_want_zeros_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"without_encoder = 'none': expected one of error, zeros"
    ):
        Listener(without_encoder="none")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_docs_keep_the_vectors_of_an_encoder_that_has_run(
    saved: dict[str, Path], kind: str
) -> None:
    whole, encoder = spacy.load(saved[kind]), spacy.load(saved[kind], enable=["transformer"])
    heads = spacy.load(saved[kind], disable=["transformer"])
    for text in (*SENTENCES, ""):
        doc = Doc(heads.vocab).from_bytes(encoder(text).to_bytes())
        assert annotations_of(heads(doc)) == annotations_of(whole(text))


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_vectors_of_another_shape_are_named(saved: dict[str, Path], kind: str) -> None:
    nlp = spacy.load(saved[kind], disable=["transformer"])
    for shape in ((2, WIDTH), (3, WIDTH + 1), (3,)):
        doc = nlp.make_doc("We like pizza")
        doc.tensor = np.ones(shape, dtype="f")
        with pytest.raises(
            ConfigError, match=rf"shape {re.escape(str(shape))}, but 'tagger'.*\(3, "
        ):
            nlp(doc)
    doc.tensor = None
    with pytest.raises(ConfigError, match="Without its encoder"):
        nlp(doc)


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_tokens_are_split_behind_the_encoder(saved: dict[str, Path], kind: str) -> None:
    """spaCy leaves a row too many in doc.tensor. The parts of a token have zero vectors."""
    nlp = spacy.load(saved[kind])
    encoder = nlp.select_pipes(enable=["transformer"])
    for n_splits in (1, 2):
        encoder = nlp.select_pipes(enable=["transformer"]) if n_splits > 1 else encoder
        doc = nlp("We visited NewYork and LosAngeles today.")
        encoder.restore()
        before = {token.text: token.vector for token in doc}
        with doc.retokenize() as retokenizer:
            retokenizer.split(doc[2], ["New", "York"], heads=[doc[2], doc[2]])
            if n_splits > 1:
                retokenizer.split(doc[4], ["Los", "Angeles"], heads=[doc[4], doc[4]])
        assert len(doc.tensor) > len(doc)
        expected = np.array([before.get(token.text, np.zeros(WIDTH)) for token in doc], dtype="f")
        for name in HEADS:
            (listener,) = listeners_in(nlp.get_pipe(name))
            np.testing.assert_array_equal(listener.predict([doc])[0], expected)
        reference = Doc(
            nlp.vocab, words=[t.text for t in doc], spaces=[bool(t.whitespace_) for t in doc]
        )
        reference.tensor = expected
        with nlp.select_pipes(disable=["transformer"]):
            assert (
                annotations_of(nlp(doc))["entities"] == annotations_of(nlp(reference))["entities"]
            )
            assert [token.tag_ for token in doc] == [token.tag_ for token in reference]


def test_functions_behind_an_encoder(bert_dir: Path, tmp_path: Path) -> None:
    """A function in the pipeline has no name, as other components have."""
    nlp = make_nlp(bert_dir, ["tagger", "ner"])
    nlp.add_pipe("merge_entities")
    nlp.add_pipe("merge_noun_chunks")
    nlp.to_disk(tmp_path / "nlp")
    loaded = spacy.load(tmp_path / "nlp", exclude=["merge_noun_chunks"])
    assert loaded.pipe_names[-1] == "merge_entities"
    assert loaded("Ann visited Rome.").tensor.shape[1] == 32
