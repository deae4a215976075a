"""Things that users do to a pipeline, and expect of all its pipes."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from spacy.training.initialize import init_nlp
from spacy.training.loop import train
from thinc.api import Config

from spacy_distil.component.shim import get_encoder
from spacy_distil.errors import ConfigError
from tests.life.corpus import FACTORIES, add_stock_pipes, annotations_of, make_annotated
from tests.util import (
    LISTENER,
    SENTENCES,
    STOCK_LISTENER,
    adam,
    add_heads,
    copied,
    encoder_of,
    head_config,
    make_examples,
    make_nlp,
    same,
    torch_model_of,
    weights_of,
)

PIPES = ("tagger", "ner", "textcat")
TEXTS = (*SENTENCES, "", "Ann visited Rome in spring .")


def annotate(nlp: Any) -> list[dict[str, Any]]:
    """Return the annotations of some texts."""
    return [annotations_of(doc) for doc in nlp.pipe(TEXTS, batch_size=4)]


@pytest.fixture(params=["torch", "onnx"])
def pipeline(request: pytest.FixtureRequest) -> Path:
    """Load a trained pipeline of each engine."""
    path: Path = request.getfixturevalue(f"{request.param}_pipeline")
    return path


# Copies


def test_a_pipeline_goes_through_pickle(pipeline: Path) -> None:
    """Even in the middle of a stream."""
    nlp = spacy.load(pipeline)
    stream = nlp.pipe(TEXTS, batch_size=2)
    next(stream)
    other = pickle.loads(pickle.dumps(nlp))
    assert annotate(other) == annotate(nlp)


@pytest.mark.parametrize("how", [lambda nlp: pickle.loads(pickle.dumps(nlp)), copy.deepcopy])
@pytest.mark.parametrize("pipes", [["tagger", "ner"], ["ner"]], ids=["learned", "silent"])
def test_a_copy_is_taken_while_a_batch_is_open(
    bert_dir: Path, pipes: list[str], how: Callable[[Any], Any]
) -> None:
    """The ner is silent. The copy has learned from the tagger, and learns on its own."""
    nlp = make_nlp(bert_dir, pipes)
    nlp.update(make_examples(nlp, drop=["entities"]), sgd=adam())
    assert nlp.get_pipe("transformer").listeners[-1]._batch_id is not None
    other = how(nlp)
    assert annotate(other) == annotate(nlp)
    before = weights_of(nlp)
    other.update(make_examples(other, start=16), sgd=adam())
    assert same(before, weights_of(nlp), atol=0)
    assert not same(before, weights_of(other), atol=1e-5)
    nlp.update(make_examples(nlp, start=16), sgd=adam())
    assert not same(before, weights_of(nlp), atol=1e-5)


def test_pipes_are_sourced(pipeline: Path) -> None:
    source: Any = spacy.load(pipeline)
    nlp: Any = spacy.blank("en")
    for name in ("transformer", *PIPES):
        nlp.add_pipe(name, source=source)
    assert nlp.get_pipe("transformer").listening_components == list(PIPES)
    assert annotate(nlp) == annotate(source)


# A pipe with a copy of the encoder, beside a pipe that learns


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Make docs for spaCy's training loop. Some are empty."""
    nlp = spacy.blank("en")
    docs = [example.reference for example in make_examples(nlp, 12)]
    path = tmp_path / "corpus.spacy"
    DocBin(docs=[*docs[:4], Doc(nlp.vocab), *docs[4:], Doc(nlp.vocab)]).to_disk(path)
    return path


def train_config(source: Path, corpus: Path, frozen: list[str], annotating: list[str]) -> Config:
    """Configure a frozen tagger with an encoder of its own, and a new entity recognizer."""
    nlp = spacy.blank("en")
    add_heads(nlp, ["ner"])
    config = Config(nlp.config).copy()
    config["nlp"]["pipeline"] = ["transformer", "tagger", "ner"]
    config["components"] |= {
        "transformer": {"source": str(source)},
        "tagger": {"source": str(source), "replace_listeners": ["model.tok2vec"]},
    }
    reader = {"@readers": "spacy.Corpus.v1", "path": str(corpus)}
    config["corpora"] = {"train": reader, "dev": reader}
    config["training"] |= {
        "frozen_components": frozen,
        "annotating_components": annotating,
        "max_steps": 4,
        "eval_frequency": 2,
        "seed": 0,
    }
    return config


def test_a_frozen_pipe_with_its_own_encoder_stays_as_it_is(
    pipeline: Path, corpus: Path, tmp_path: Path
) -> None:
    source = spacy.load(pipeline)
    learns = encoder_of(source).settings.engine == "torch"
    frozen = ["tagger"] if learns else ["tagger", "transformer"]
    config = train_config(pipeline, corpus, frozen, [] if learns else ["transformer"])
    nlp: Any = init_nlp(config)
    ner = nlp.get_pipe("ner").model.to_bytes()
    train(nlp, tmp_path, stdout=io.StringIO(), stderr=io.StringIO())
    trained: Any = spacy.load(tmp_path / "model-last")
    assert trained.get_pipe("ner").model.to_bytes() != ner
    assert (encoder_of(trained).to_files() == encoder_of(source).to_files()) == (not learns)
    for text in TEXTS:
        tags = [token.tag_ for token in trained(text)]
        assert tags == [token.tag_ for token in source(text)]


# An encoder inside a pipe


@pytest.mark.parametrize("factory", ["ner", "spancat", "textcat"])
def test_an_encoder_inside_a_stock_pipe(factory: str, bert_dir: Path, tmp_path: Path) -> None:
    nlp: Any = spacy.blank("en")
    encoder = {"@architectures": "spacy-distil.DistilTransformer.v1", "name": str(bert_dir)}
    add_stock_pipes(nlp, [factory], encoder)
    spacy.util.fix_random_seed(0)
    nlp.initialize(lambda: make_annotated(nlp))
    model = next(node for node in nlp.get_pipe(factory).model.walk() if node.shims)
    before = copied(get_encoder(model).engine.model)  # type: ignore[attr-defined]
    optimizer = adam(1e-2)
    empty = [Example.from_dict(nlp.make_doc(""), {})]
    for _ in range(18):
        nlp.update(empty + make_annotated(nlp), sgd=optimizer)
    assert not same(before, copied(get_encoder(model).engine.model), atol=1e-3)  # type: ignore[attr-defined]
    assert nlp.evaluate(make_annotated(nlp))[FACTORIES[factory][1]] > 0.8
    nlp.to_disk(tmp_path)
    assert annotate(spacy.load(tmp_path)) == annotate(nlp)


# A frozen encoder


def test_all_pipes_learn_from_a_frozen_encoder_beside_empty_docs(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, initialize=False)
    add_stock_pipes(nlp, list(FACTORIES))
    nlp.initialize(lambda: make_annotated(nlp))
    encoder = weights_of(nlp)
    before = {name: nlp.get_pipe(name).model.to_bytes() for name in FACTORIES}
    empty = [Example.from_dict(nlp.make_doc(""), {}) for _ in range(2)]
    frozen = {"exclude": ["transformer"], "annotates": ["transformer"]}
    nlp.update([empty[0], *make_annotated(nlp), empty[1]], sgd=adam(), **frozen)
    nlp.update(empty, sgd=adam(), **frozen)
    assert same(encoder, weights_of(nlp), atol=0)
    for name, weights in before.items():
        assert nlp.get_pipe(name).model.to_bytes() != weights, name


# Rehearsal


def raw_examples(nlp: Any, *, annotated: bool) -> list[Example]:
    docs = [example.predicted for example in make_examples(nlp, start=100)]
    if annotated:
        docs = list(nlp.get_pipe("transformer").pipe(docs))
    return [Example.from_dict(doc, {}) for doc in docs]


@pytest.mark.parametrize("listener", [LISTENER, STOCK_LISTENER], ids=["ours", "stock"])
def test_rehearsal_brings_a_head_back(bert_dir: Path, listener: dict[str, Any]) -> None:
    """A pipe learns again what it has unlearned. The encoder does not change."""
    nlp = make_nlp(bert_dir, PIPES, listener=listener)
    for _ in range(15):
        nlp.update(make_examples(nlp), sgd=adam(1e-2))
    wrong = make_examples(nlp)
    for example in wrong:
        for token in example.reference:
            token.tag_ = "NN"
    optimizer = nlp.resume_training(sgd=adam(1e-2))
    for _ in range(5):  # the ner stays silent: the batch is open in the end
        nlp.update(wrong, sgd=optimizer, exclude=["ner"])
    examples = raw_examples(nlp, annotated=True)
    encoder, losses = weights_of(nlp), []
    for _ in range(20):
        assert nlp.rehearse(examples, sgd=optimizer).keys() == set(PIPES)
        # It applies the gradients of one pipe alone, drawn by lot.
        losses.append(nlp.rehearse(examples, sgd=optimizer, exclude=["transformer", *PIPES[1:]]))
    assert losses[-1]["tagger"] < 0.5 * losses[0]["tagger"]
    assert same(encoder, weights_of(nlp), atol=0)
    before = weights_of(nlp)
    nlp.update(make_examples(nlp), sgd=optimizer)
    assert not same(before, weights_of(nlp), atol=1e-5)


def test_rehearsal_on_docs_without_vectors_says_what_to_do(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"])
    nlp.resume_training(sgd=adam())
    with pytest.raises(ConfigError, match=r"Before nlp\.rehearse, .* run it over the docs"):
        nlp.rehearse(raw_examples(nlp, annotated=False), sgd=adam())


def test_rehearsal_begins_while_a_batch_is_open(bert_dir: Path) -> None:
    """Its copies of the heads do not wait for the batch."""
    nlp = make_nlp(bert_dir, ["tagger", "ner"])
    nlp.update(make_examples(nlp, drop=["entities"]), sgd=adam())
    optimizer = nlp.resume_training(sgd=adam())
    losses = nlp.rehearse(raw_examples(nlp, annotated=True), sgd=optimizer)
    assert losses == pytest.approx({"tagger": 0.0, "ner": 0.0}, abs=1e-6)
    # Nor does a head that is copied alone.
    nlp.update(make_examples(nlp, drop=["entities"]), sgd=adam())
    ner = pickle.loads(pickle.dumps(nlp.get_pipe("ner")))
    docs = [nlp(text) for text in TEXTS]
    assert [doc.ents for doc in map(ner, docs)] == [doc.ents for doc in docs]


# Memory


def test_a_memory_zone_leaves_nothing_behind(pipeline: Path) -> None:
    nlp = spacy.load(pipeline)
    expected = annotate(nlp)
    before = len(nlp.vocab.strings), len(list(nlp.vocab))
    for i in range(3):
        with nlp.memory_zone():
            assert annotate(nlp) == expected
            docs = list(nlp.pipe(f"Xylo{i}{k} visited Qu{i}{k}ux in spring." for k in range(40)))
            assert all(doc.tensor.any(axis=1).all() for doc in docs)
            del docs
        assert (len(nlp.vocab.strings), len(list(nlp.vocab))) == before
    assert annotate(nlp) == expected


# Errors


def test_a_failing_batch_reaches_the_error_handler(bert_dir: Path) -> None:
    """The docs of the other batches are yielded."""
    nlp = make_nlp(bert_dir, ["tagger"])
    texts = [f"Ann visited {place} ." for place in ("Rome", "Oslo", "Zürich")] * 5
    texts[4] = "unbelievable ! " * 8  # the longest by far
    expected = [annotations_of(doc) for doc in nlp.pipe(texts)]

    def fail(module: Any, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        if kwargs["input_ids"].shape[1] > 30:
            raise MemoryError("too long")

    torch_model_of(nlp).register_forward_pre_hook(fail, with_kwargs=True)
    seen: list[tuple[str, list[str], Exception]] = []
    nlp.set_error_handler(
        lambda name, pipe, docs, error: seen.append((name, [doc.text for doc in docs], error))
    )
    found = [annotations_of(doc) for doc in nlp.pipe(texts, batch_size=3)]
    assert found == expected[:3] + expected[6:]
    ((name, failed, error),) = seen
    assert (name, failed) == ("transformer", [nlp.make_doc(text).text for text in texts[3:6]])
    assert "too long" in str(error)
    seen.clear()
    assert [annotations_of(doc) for doc in nlp.pipe(texts, batch_size=1)] == (
        expected[:4] + expected[5:]
    )
    assert [failed for _, failed, _ in seen] == [[nlp.make_doc(texts[4]).text]]


def test_without_a_handler_the_error_is_raised(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir)

    def fail(module: Any, args: Any, kwargs: Any) -> None:
        raise MemoryError("no room")

    torch_model_of(nlp).register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(Exception, match="no room"):
        list(nlp.pipe(SENTENCES, batch_size=2))


# The pipeline changes


def test_analysis_finds_no_problem(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, PIPES)
    analysis = nlp.analyze_pipes()
    assert analysis["attrs"]["doc.tensor"] == {"assigns": ["transformer"], "requires": []}
    assert not any(analysis["problems"].values())
    assert analysis["summary"]["transformer"]["assigns"] == ["doc.tensor"]


def test_pipes_are_disabled_and_enabled_again(pipeline: Path) -> None:
    nlp = spacy.load(pipeline)
    expected = annotate(nlp)
    with nlp.select_pipes(enable=["transformer", "tagger"]):
        for found, whole in zip(annotate(nlp), expected, strict=True):
            assert found["tensor"] == whole["tensor"]
            assert [each[:2] for each in found["tokens"]] == [each[:2] for each in whole["tokens"]]
            assert not found["cats"]
    with nlp.select_pipes(disable="transformer"), pytest.raises(ConfigError, match="Enable the"):
        nlp("Ann visited Rome .")
    nlp.disable_pipe("transformer")
    nlp.enable_pipe("transformer")
    assert annotate(nlp) == expected
    disabled: Any = spacy.load(pipeline, disable=["transformer"])
    disabled.enable_pipe("transformer")
    assert annotate(disabled) == expected
    assert disabled.get_pipe("transformer").listening_components == list(PIPES)


def test_a_pipe_that_is_disabled_does_not_stop_the_others(bert_dir: Path) -> None:
    nlp, without = make_nlp(bert_dir, ["tagger", "ner"]), make_nlp(bert_dir, ["tagger"])
    with nlp.select_pipes(disable="ner"):
        nlp.update(make_examples(nlp), sgd=adam())
        nlp(SENTENCES[0])
    without.update(make_examples(without), sgd=adam())
    assert same(weights_of(without), weights_of(nlp))


def test_the_encoder_is_renamed(bert_dir: Path, tmp_path: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"])
    expected = annotate(nlp)
    nlp.rename_pipe("transformer", "encoder")
    assert nlp.get_pipe("encoder").listening_components == ["tagger"]
    assert annotate(nlp) == expected
    assert nlp.update(make_examples(nlp), sgd=adam())["encoder"] > 0
    nlp.to_disk(tmp_path)
    assert annotate(spacy.load(tmp_path)) == annotate(nlp)


def test_a_head_is_removed_and_replaced(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger", "ner"])
    nlp.remove_pipe("ner")
    assert nlp.get_pipe("transformer").listening_components == ["tagger"]
    before = weights_of(nlp)
    nlp.update(make_examples(nlp), sgd=adam())
    assert not same(before, weights_of(nlp), atol=1e-5)
    old = nlp.get_pipe("tagger").model.get_ref("tok2vec")
    nlp.replace_pipe("tagger", "tagger", config=head_config("tagger", LISTENER))
    (new,) = nlp.get_pipe("transformer").listeners
    assert new is nlp.get_pipe("tagger").model.get_ref("tok2vec")
    assert new is not old


@pytest.mark.parametrize("way", ["nlp.initialize", "pipe.initialize"])
def test_a_head_is_added_to_a_trained_encoder(way: str, torch_pipeline: Path) -> None:
    """It learns, and the other pipes do not change, even if the original encoder is gone."""
    config = {"components": {"transformer": {"model": {"name": "gone/and-forgotten"}}}}
    nlp: Any = spacy.load(torch_pipeline, config=config)
    expected = annotate(nlp)
    nlp.add_pipe("morphologizer", config=head_config("morphologizer", LISTENER))
    if way == "nlp.initialize":
        with nlp.select_pipes(enable="morphologizer"):
            nlp.initialize(lambda: make_examples(nlp))
    else:
        nlp.get_pipe("morphologizer").initialize(lambda: make_examples(nlp), nlp=nlp)
    with nlp.select_pipes(disable="morphologizer"):
        assert annotate(nlp) == expected
    assert nlp.get_pipe("transformer").listening_components == [*PIPES, "morphologizer"]
    optimizer = nlp.resume_training(sgd=adam(1e-2))
    for _ in range(30):
        nlp.update(make_examples(nlp), sgd=optimizer)
    scores = nlp.evaluate(make_examples(nlp))
    assert min(scores[each] for each in ("pos_acc", "tag_acc", "ents_f", "cats_macro_f")) > 0.9


def test_initializing_all_begins_anew(bert_dir: Path) -> None:
    """As in all pipes of spaCy, initialization discards the weights."""
    nlp = make_nlp(bert_dir, ["tagger"])
    before = weights_of(nlp)
    nlp.update(make_examples(nlp), sgd=adam())
    assert not same(before, weights_of(nlp), atol=1e-5)
    nlp.initialize(lambda: make_examples(nlp))
    assert same(before, weights_of(nlp), atol=0)


def test_a_pipeline_moves(pipeline: Path, tmp_path: Path) -> None:
    """It does not need the directory from which it was loaded."""
    shutil.copytree(pipeline, tmp_path / "here")
    nlp = spacy.load(tmp_path / "here")
    expected = annotate(nlp)
    shutil.rmtree(tmp_path / "here")
    nlp.to_disk(tmp_path / "there")
    assert annotate(spacy.load(tmp_path / "there")) == expected


# Errors


def test_initializing_while_a_batch_is_open_forgets_it(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger", "ner"])
    nlp.update(make_examples(nlp, drop=["entities"]), sgd=adam())
    nlp.get_pipe("transformer").initialize(lambda: make_examples(nlp), nlp=nlp)
    # The listeners read what the frozen encoder has annotated, not what they had received.
    losses = nlp.update(
        make_examples(nlp), sgd=adam(), exclude=["transformer"], annotates=["transformer"]
    )
    assert losses["ner"] > 0


def test_loading_while_a_batch_is_open_forgets_it(bert_dir: Path, tmp_path: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger", "ner"])
    nlp.to_disk(tmp_path)
    saved = weights_of(nlp)
    nlp.update(make_examples(nlp, drop=["entities"]), sgd=adam())
    nlp.from_disk(tmp_path)
    nlp.get_pipe("transformer").finish_update(adam())
    assert same(saved, weights_of(nlp), atol=0)


def test_a_gradient_of_another_shape_is_an_error(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"])
    examples = make_examples(nlp, 2)
    nlp.get_pipe("transformer").update(examples)
    listener = nlp.get_pipe("tagger").model.get_ref("tok2vec")
    _, backprop = listener.begin_update([example.predicted for example in examples])
    with pytest.raises(ValueError, match=r"gradient of shape \(1, 32\), expected \(12, 32\)"):
        backprop([np.zeros((1, 32), dtype="f"), np.zeros((0, 32), dtype="f")])


def test_a_stream_that_breaks_gives_what_it_has_encoded(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir)

    def texts() -> Iterator[str]:
        yield from ("Ann", "visited", "Rome")
        raise OSError("no more")

    stream = nlp.pipe(texts(), batch_size=2)
    assert [next(stream).text, next(stream).text] == ["Ann", "visited"]
    with pytest.raises(OSError, match="no more"):
        next(stream)


class Wrapped:
    """A user's own optimizer, which passes everything on."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.optimizer(*args, **kwargs)


def test_an_optimizer_of_another_class_trains_the_encoder(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"])
    before = weights_of(nlp)
    nlp.update(make_examples(nlp), sgd=Wrapped(adam()))
    assert not same(before, weights_of(nlp), atol=1e-5)


def test_variables_of_the_optimizer_are_filled_in(bert_dir: Path, tmp_path: Path) -> None:
    """spaCy resolves this block without the rest of the config."""
    nlp = make_nlp(bert_dir, ["tagger"], initialize=False)
    config = nlp.config.copy()
    config["training"]["max_steps"] = 70
    config["training"]["optimizer"]["learn_rate"] = {
        "@schedules": "warmup_linear.v1",
        "warmup_steps": 10,
        "total_steps": "${training.max_steps}",
        "initial_rate": 0.001,
    }
    nlp = spacy.util.load_model_from_config(config)
    nlp.initialize(lambda: make_examples(nlp))
    nlp.to_disk(tmp_path)
    loaded: Any = spacy.load(tmp_path)
    assert loaded.config["training"]["optimizer"]["learn_rate"]["total_steps"] == 70
    assert loaded.resume_training().learn_rate == 0
