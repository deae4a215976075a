"""Two encoders in one pipeline: which pipe listens to which, and orders that cannot work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy

from spacy_distil.component.shim import get_encoder
from spacy_distil.errors import ConfigError
from tests.life.corpus import annotations_of
from tests.util import (
    SENTENCES,
    adam,
    copied,
    head_config,
    make_examples,
    make_nlp,
    same,
    weights_of,
    write_encoder,
)

CNN = {
    "@architectures": "spacy.HashEmbedCNN.v2",
    "pretrained_vectors": None,
    "width": 24,
    "depth": 1,
    "embed_size": 200,
    "window_size": 1,
    "maxout_pieces": 2,
    "subword_features": True,
}


@pytest.fixture(scope="module")
def narrow_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small random BERT that is narrower than the others."""
    return write_encoder(tmp_path_factory.mktemp("narrow") / "bert", "bert", width=24, seed=1)


@pytest.fixture
def dirs(bert_dir: Path, narrow_dir: Path) -> dict[str, Path | None]:
    """Encoders by the names of their components; None is spaCy's own."""
    return {"first": bert_dir, "second": narrow_dir, "stock": None}


def listener_to(upstream: str, width: int | None = None) -> dict[str, Any]:
    return {"@architectures": "spacy-distil.Listener.v1", "upstream": upstream, "width": width}


def make(dirs: dict[str, Path | None], order: Sequence[Any], *, ready: bool = True) -> Any:
    """A pipeline.

    order: names of encoders, and (factory, upstream), with a width or without, of pipes that
        listen.
    """
    nlp = spacy.blank("en")
    for each in order:
        if isinstance(each, tuple):
            nlp.add_pipe(each[0], config=head_config(each[0], listener_to(*each[1:])))
        elif dirs[each] is None:
            nlp.add_pipe("tok2vec", name=each, config={"model": CNN})
        else:
            model = {
                "@architectures": "spacy-distil.DistilTransformer.v1",
                "name": str(dirs[each]),
            }
            nlp.add_pipe("distil_transformer", name=each, config={"model": model})
    if ready:
        spacy.util.fix_random_seed(0)
        nlp.initialize(lambda: make_examples(nlp))
    return nlp


def encoder_weights(nlp: Any, name: str) -> dict[str, np.ndarray]:
    engine: Any = get_encoder(nlp.get_pipe(name).model).engine
    return copied(engine.model)


NAMED = ["first", ("tagger", "first"), "second", ("ner", "second"), ("textcat", "second")]
ANY = ["first", ("tagger", "*"), "second", ("ner", "*"), ("textcat", "*")]


# Orders that work


@pytest.mark.parametrize("order", [NAMED, ANY], ids=["named", "any"])
def test_each_pipe_learns_from_the_encoder_before_it(
    dirs: dict[str, Path | None], order: list[Any], tmp_path: Path
) -> None:
    nlp = make(dirs, order)
    assert nlp.get_pipe("first").listening_components == ["tagger"]
    assert nlp.get_pipe("second").listening_components == ["ner", "textcat"]
    before = {name: encoder_weights(nlp, name) for name in ("first", "second")}
    optimizer = adam(5e-3)
    for _ in range(25):
        nlp.update(make_examples(nlp), sgd=optimizer)
    for name, weights in before.items():
        assert not same(weights, encoder_weights(nlp, name), atol=1e-3), name
    scores = nlp.evaluate(make_examples(nlp))
    assert min(scores[each] for each in ("tag_acc", "ents_f", "cats_macro_f")) > 0.9
    nlp.to_disk(tmp_path)
    loaded: Any = spacy.load(tmp_path)
    assert loaded.get_pipe("first").listening_components == ["tagger"]
    for text in SENTENCES:
        assert annotations_of(loaded(text)) == annotations_of(nlp(text))


@pytest.mark.parametrize(
    ("order", "drop"), [(NAMED, ["tags"]), (ANY, []), (ANY, ["tags"]), (ANY, ["entities"])]
)
def test_each_encoder_learns_as_if_the_other_were_not_there(
    dirs: dict[str, Path | None], order: list[Any], drop: Sequence[str]
) -> None:
    """Even if a pipe is silent, so that the first batch is open when the second begins."""
    nlp = make(dirs, order)
    one = make_like(nlp, dirs, order[:2])
    two = make_like(nlp, dirs, order[2:])
    for each in (nlp, one, two):
        optimizer = adam()
        for start in (0, 16):
            examples = make_examples(each, start=start, drop=drop)
            each.update(examples, sgd=optimizer, annotates=["first", "second"])
        each(SENTENCES[0])
    assert same(encoder_weights(one, "first"), encoder_weights(nlp, "first"))
    assert same(encoder_weights(two, "second"), encoder_weights(nlp, "second"))


def make_like(nlp: Any, dirs: dict[str, Path | None], order: list[Any]) -> Any:
    """Make a pipeline of some of the pipes, with the same weights."""
    part = make(dirs, order)
    for name in part.pipe_names:
        part.get_pipe(name).from_bytes(nlp.get_pipe(name).to_bytes(exclude=["vocab"]))
    return part


def test_vectors_are_those_of_the_last_encoder(dirs: dict[str, Path | None]) -> None:
    nlp = make(dirs, NAMED)
    alone = make(dirs, ["second"])
    for text in SENTENCES:
        np.testing.assert_array_equal(nlp(text).tensor, alone(text).tensor)


@pytest.mark.parametrize(
    "order",
    [
        ["first", ("tagger", "*"), "stock", ("ner", "*", 24)],
        ["first", ("tagger", "first"), "stock", ("ner", "stock", 24)],
        ["stock", ("tagger", "stock", 24), "first", ("ner", "first")],
    ],
)
def test_beside_a_tok2vec_of_spacy(dirs: dict[str, Path | None], order: list[Any]) -> None:
    nlp = make(dirs, order)
    before, stock = encoder_weights(nlp, "first"), nlp.get_pipe("stock").model.to_bytes()
    optimizer = adam(5e-3)
    for _ in range(25):
        nlp.update(make_examples(nlp), sgd=optimizer)
    assert not same(before, encoder_weights(nlp, "first"), atol=1e-3)
    assert stock != nlp.get_pipe("stock").model.to_bytes()
    scores = nlp.evaluate(make_examples(nlp))
    assert min(scores["tag_acc"], scores["ents_f"]) > 0.9


def test_a_copy_of_the_first_encoder_stands_behind_the_second(
    dirs: dict[str, Path | None], tmp_path: Path
) -> None:
    """The error message for a wrong order advises this."""
    nlp = make(dirs, ["first", ("tagger", "first")])
    expected = [token.tag_ for token in nlp(SENTENCES[0])]
    nlp.replace_listeners("first", "tagger", ["model.tok2vec"])
    model = {
        "@architectures": "spacy-distil.DistilTransformer.v1",
        "name": str(dirs["second"]),
    }
    nlp.add_pipe("distil_transformer", name="second", before="tagger", config={"model": model})
    nlp.get_pipe("second").initialize(lambda: make_examples(nlp), nlp=nlp)
    assert [token.tag_ for token in nlp(SENTENCES[0])] == expected


# Orders that cannot

WRONG = r"'tagger' listens to 'first', but would read the vectors of '{}', .*Place 'tagger' before"


@pytest.mark.parametrize("second", ["second", "stock"])
def test_an_overwritten_tensor_is_refused(dirs: dict[str, Path | None], second: str) -> None:
    message = WRONG.format(second) + rf" '{second}' .*nlp\.replace_listeners\(\"first\", \"tagger\""
    with pytest.raises(ConfigError, match=message):
        make(dirs, ["first", second, ("tagger", "first")])
    nlp = make(dirs, ["first", ("tagger", "first")])
    with pytest.raises(ConfigError, match=WRONG.format("stock")):
        nlp.add_pipe("tok2vec", name="stock", before="tagger")


def test_an_overwritten_tensor_of_spacy_s_own_is_refused(dirs: dict[str, Path | None]) -> None:
    """Its own `find_listeners` checks nothing."""
    message = WRONG.replace("first", "stock").format("second")
    with pytest.raises(ConfigError, match=message):
        make(dirs, ["stock", "second", ("tagger", "stock", 24)])


def test_an_overwritten_tensor_is_refused_at_loading(
    dirs: dict[str, Path | None], tmp_path: Path
) -> None:
    make(dirs, NAMED).to_disk(tmp_path)
    pipeline = ["first", "second", "tagger", "ner", "textcat"]
    with pytest.raises(ConfigError, match=WRONG.format("second")):
        spacy.load(tmp_path, config={"nlp": {"pipeline": pipeline}})


def test_a_listener_to_any_encoder_takes_the_nearest(dirs: dict[str, Path | None]) -> None:
    nlp = make(dirs, ["first", "second", ("tagger", "*")], ready=False)
    assert nlp.get_pipe("first").listening_components == []
    assert nlp.get_pipe("second").listening_components == ["tagger"]
    nlp.remove_pipe("second")
    assert nlp.get_pipe("first").listening_components == ["tagger"]


def test_what_a_tok2vec_of_spacy_would_train_is_refused(dirs: dict[str, Path | None]) -> None:
    """spaCy's Tok2Vec takes all listeners after it, and would wait for the last one in vain."""
    order = ["stock", ("tagger", "*", 24), "second", ("ner", "*")]
    message = (
        r"'ner' listens to \"\*\": it would learn from 'stock', but predict from the vectors "
        r"of 'second'\. Set upstream = \"second\" in \[components\.ner\.model\.tok2vec\]"
    )
    with pytest.raises(ConfigError, match=message):
        make(dirs, order)


def test_what_a_frozen_encoder_would_lose_to_another_is_refused(
    bert_dir: Path, tmp_path: Path
) -> None:
    """`spacy train` disables a frozen encoder while the others are initialized."""
    dirs: dict[str, Path | None] = {"first": bert_dir, "second": bert_dir}
    nlp = make(dirs, ["first", ("tagger", "*"), "second", ("ner", "*")])
    with (
        nlp.select_pipes(disable=["second"]),
        pytest.raises(ConfigError, match=r"'ner' listens .* learn from 'first', .* 'second'"),
    ):
        nlp.initialize(lambda: make_examples(nlp))
    with nlp.select_pipes(disable=["second", "ner"]):  # not where the pipe does not learn
        nlp.initialize(lambda: make_examples(nlp))


def test_one_encoder_stays_as_it_is_beside_a_frozen_one(bert_dir: Path, narrow_dir: Path) -> None:
    dirs: dict[str, Path | None] = {"first": bert_dir, "second": narrow_dir}
    nlp = make(dirs, NAMED)
    before = {name: encoder_weights(nlp, name) for name in dirs}
    for _ in range(2):
        nlp.update(make_examples(nlp), sgd=adam(), exclude=["second"], annotates=["second"])
    assert same(before["second"], encoder_weights(nlp, "second"), atol=0)
    assert not same(before["first"], encoder_weights(nlp, "first"), atol=1e-5)


def test_a_single_encoder_has_all_listeners(bert_dir: Path) -> None:
    """Each change of the pipeline links all listeners again."""
    nlp = make_nlp(bert_dir, ["tagger", "ner"])
    nlp.add_pipe("tok2vec", config={"model": CNN}, last=True)
    nlp.rename_pipe("ner", "entities")
    assert nlp.get_pipe("transformer").listening_components == ["tagger", "entities"]
    nlp.remove_pipe("tok2vec")
    nlp.add_pipe("textcat", config=head_config("textcat", listener_to("transformer")))
    assert nlp.get_pipe("transformer").listening_components == ["tagger", "entities", "textcat"]
    before = weights_of(nlp)
    nlp.initialize(lambda: make_examples(nlp))
    nlp.update(make_examples(nlp), sgd=adam())
    assert not same(before, weights_of(nlp), atol=0)


@pytest.mark.parametrize("upstream", ["other", "*"])
def test_a_pipe_without_an_encoder_is_named(upstream: str, bert_dir: Path) -> None:
    order = [("tagger", upstream), "first"]
    with pytest.raises(ConfigError, match=r"listens to '.*' for vectors of unknown width"):
        make({"first": bert_dir}, order)
