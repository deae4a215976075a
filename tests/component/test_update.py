"""The component's own `update`, and the faults of spaCy's and thinc's parts that it replaces."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Model, PyTorchWrapper, chain, with_array

from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.export.encoders import SourceEncoder
from spacy_distil.export.graph import Precision
from tests.util import (
    LAYERS,
    LISTENER,
    SENTENCES,
    STOCK_LISTENER,
    WIDTH,
    adam,
    add_heads,
    copied,
    encoder_of,
    initialize_nlp,
    make_examples,
    make_nlp,
    same,
    torch_model_of,
    weights_of,
)

ALL = ("tagger", "textcat", "ner")


# The stock parts: spaCy's Tok2Vec around a torch module in thinc's wrapper


@spacy.registry.architectures("spacy-distil.tests.StockTok2Vec.v1")
def stock_tok2vec(dropout: float) -> Model[list[Doc], list[Any]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Linear(16, 32), torch.nn.Dropout(dropout), torch.nn.Tanh(),
            torch.nn.Linear(32, WIDTH),
        )  # fmt: skip
    return chain(Model("bits", _bits), with_array(PyTorchWrapper(module)))


def _bits(model: Model, docs: list[Doc], is_train: bool) -> tuple[list[np.ndarray], Callable]:
    """Return the lowest bits of each token's hash."""
    ids = [doc.to_array("ORTH").reshape(-1, 1) for doc in docs]
    bits = [((each >> np.arange(16, dtype="uint64")) & np.uint64(1)).astype("f") for each in ids]
    return bits, lambda gradient: []


def make_stock(pipes: Sequence[str], dropout: float = 0.0, listener: Any = STOCK_LISTENER) -> Any:
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy-distil.tests.StockTok2Vec.v1", "dropout": dropout}
    nlp.add_pipe("tok2vec", name="transformer", config={"model": model})
    add_heads(nlp, pipes, listener)
    initialize_nlp(nlp)
    return nlp


def stock_module(nlp: Any) -> torch.nn.Module:
    (module,) = (
        shim._model for node in nlp.get_pipe("transformer").model.walk() for shim in node.shims
    )
    return module


def stock_weights(nlp: Any) -> dict[str, np.ndarray]:
    return copied(stock_module(nlp))


def step(nlp: Any, optimizer: Any, exclude: Sequence[str] = ()) -> None:
    """Take a step as spaCy's training loop does."""
    for name, pipe in nlp.pipeline:
        if name not in exclude:
            pipe.finish_update(optimizer)


def listeners_of(nlp: Any) -> list[Any]:
    return nlp.get_pipe("transformer").listeners


# A last head that is frozen, or has no gold in the batch


def test_a_frozen_last_head_does_not_stop_the_gradient(bert_dir: Path) -> None:
    nlp, without = make_nlp(bert_dir, ["tagger", "ner"]), make_nlp(bert_dir, ["tagger"])
    before = weights_of(nlp)
    optimizers = adam(), adam()
    for i in range(2):
        nlp.update(make_examples(nlp, start=16 * i), sgd=False, exclude=["ner"])
        step(nlp, optimizers[0], exclude=["ner"])
        without.update(make_examples(without, start=16 * i), sgd=False)
        step(without, optimizers[1])
    assert not same(before, weights_of(nlp), atol=1e-4)
    assert same(weights_of(without), weights_of(nlp))


def test_stock_a_frozen_last_head_stops_the_gradient() -> None:
    nlp = make_stock(["tagger", "ner"])
    before = stock_weights(nlp)
    for _ in range(2):
        nlp.update(make_examples(nlp), sgd=False, exclude=["ner"])
        step(nlp, adam(), exclude=["ner"])
    assert same(before, stock_weights(nlp), atol=0)


@pytest.mark.parametrize(
    ("last", "gold"),
    # Missing classes are "no" to the exclusive textcat, so that it always learns.
    [("ner", "entities"), ("tagger", "tags"), ("textcat_multilabel", "cats")],
)
def test_a_last_head_without_gold_does_not_stop_the_gradient(
    bert_dir: Path, last: str, gold: str
) -> None:
    first = "textcat" if last == "tagger" else "tagger"
    nlp, without = make_nlp(bert_dir, [first, last]), make_nlp(bert_dir, [first])
    before = weights_of(nlp)
    nlp.update(make_examples(nlp, drop=[gold]), sgd=False)
    step(nlp, adam())
    without.update(make_examples(without), sgd=False)
    step(without, adam())
    assert not same(before, weights_of(nlp), atol=1e-4)
    assert same(weights_of(without), weights_of(nlp))


def test_stock_a_last_head_without_gold_stops_the_gradient() -> None:
    nlp = make_stock(["tagger", "ner"])
    before = stock_weights(nlp)
    nlp.update(make_examples(nlp, drop=["entities"]), sgd=False)
    step(nlp, adam())
    assert same(before, stock_weights(nlp), atol=0)


def test_a_batch_without_any_gold_leaves_what_earlier_ones_gathered(bert_dir: Path) -> None:
    """The step applies these gradients when the batch without gold is over."""
    nlp, reference = make_nlp(bert_dir, ["ner"]), make_nlp(bert_dir, ["ner"])
    nlp.update(make_examples(nlp), sgd=False)
    nlp.update(make_examples(nlp, drop=["entities"]), sgd=False)
    step(nlp, adam())
    reference.update(make_examples(reference), sgd=False)
    step(reference, adam())
    nlp(SENTENCES[0])
    assert same(weights_of(reference), weights_of(nlp))


# nlp.update with an optimizer


def naive_loop(nlp: Any, n: int, optimizer: Any, **kwargs: Any) -> None:
    """Run all backward passes, and then the step."""
    for i in range(n):
        nlp.update(make_examples(nlp, start=16 * i, **kwargs), sgd=False)
        step(nlp, optimizer)


@pytest.mark.parametrize("drop", [(), ("entities",)], ids=["gold", "last-without-gold"])
def test_updates_with_an_optimizer_equal_the_naive_loop(
    bert_dir: Path, drop: Sequence[str]
) -> None:
    nlp, reference = make_nlp(bert_dir, ALL), make_nlp(bert_dir, ALL)
    before = weights_of(nlp)
    naive_loop(reference, 4, adam(), drop=drop)
    optimizer = adam()
    for i in range(4):
        nlp.update(make_examples(nlp, start=16 * i, drop=drop), sgd=optimizer)
        if i == 0 and not drop:
            assert not same(before, weights_of(nlp), atol=1e-4)
    nlp(SENTENCES[0])  # a step that waits for a silent head is taken before the next prediction
    assert same(weights_of(reference), weights_of(nlp))
    for name in ALL:
        assert _flat(nlp, name) == pytest.approx(_flat(reference, name), abs=1e-6)


def _flat(nlp: Any, name: str) -> np.ndarray:
    """Return the weights of a head in one row."""
    model = nlp.get_pipe(name).model
    return np.concatenate(
        [
            node.get_param(key).ravel()
            for node in model.walk()
            for key in node.param_names
            if node.has_param(key)
        ]
    )


def test_stock_the_first_update_with_an_optimizer_changes_nothing() -> None:
    nlp, reference = make_stock(["tagger"]), make_stock(["tagger"])
    before = stock_weights(nlp)
    optimizer = adam()
    nlp.update(make_examples(nlp), sgd=optimizer)
    assert same(before, stock_weights(nlp), atol=0)
    for i in range(1, 4):
        nlp.update(make_examples(nlp, start=16 * i), sgd=optimizer)
    naive_loop(reference, 4, adam())
    assert not same(stock_weights(reference), stock_weights(nlp), atol=1e-4)


def test_without_an_optimizer_spacy_makes_its_own(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"])
    before = weights_of(nlp)
    nlp.update(make_examples(nlp))
    assert not same(before, weights_of(nlp), atol=1e-5)


def test_the_component_takes_an_optimizer_itself(bert_dir: Path) -> None:
    """Heads do so too when they are updated one by one."""
    nlp, reference = make_nlp(bert_dir, ["tagger"]), make_nlp(bert_dir, ["tagger"])
    naive_loop(reference, 1, adam())
    examples, optimizer = make_examples(nlp), adam()
    nlp.get_pipe("transformer").update(examples, sgd=optimizer)
    nlp.get_pipe("tagger").update(examples, sgd=optimizer)
    assert same(weights_of(reference), weights_of(nlp))


# Training, then freezing


@pytest.mark.parametrize("listener", [LISTENER, STOCK_LISTENER], ids=["ours", "stock"])
@pytest.mark.parametrize("drop", [(), ("entities",)], ids=["gold", "without-gold"])
def test_training_then_freezing(bert_dir: Path, listener: Any, drop: Sequence[str]) -> None:
    nlp = make_nlp(bert_dir, ["tagger", "ner"], listener=listener)
    optimizer = adam()
    nlp.update(make_examples(nlp, drop=drop), sgd=optimizer)
    nlp.update(make_examples(nlp, start=16), sgd=optimizer)
    trained, tagger = weights_of(nlp), _flat(nlp, "tagger").copy()
    for i in range(2):
        nlp.update(
            make_examples(nlp, start=16 * i + 32, drop=drop),
            sgd=optimizer,
            exclude=["transformer"],
            annotates=["transformer"],
        )
    assert same(trained, weights_of(nlp), atol=0)
    assert np.abs(_flat(nlp, "tagger") - tagger).max() > 1e-4


def test_freezing_after_a_batch_that_nobody_learned_from(bert_dir: Path) -> None:
    """The batch stays open, and must not be confused with the next one."""
    nlp = make_nlp(bert_dir, ["ner"])
    nlp.update(make_examples(nlp, drop=["entities"]), sgd=adam())
    trained = weights_of(nlp)
    nlp.update(make_examples(nlp), sgd=adam(), exclude=["transformer"], annotates=["transformer"])
    nlp.get_pipe("transformer").finish_update(adam())
    assert same(trained, weights_of(nlp), atol=0)


def test_stock_training_then_freezing_is_an_error() -> None:
    nlp = make_stock(["tagger"])
    nlp.update(make_examples(nlp), sgd=adam())
    with pytest.raises(ValueError, match="E953"):
        nlp.update(
            make_examples(nlp, start=16),
            sgd=adam(),
            exclude=["transformer"],
            annotates=["transformer"],
        )


# Threads


def in_threads(n: int, work: Callable[[int], None]) -> None:
    """Run `work` in n threads, and raise the first error."""
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_two_threads_share_a_pipeline(dropout_dir: Path) -> None:
    nlp = make_nlp(dropout_dir)
    texts = [SENTENCES[i % len(SENTENCES)] for i in range(30)]
    expected = {text: nlp(text).tensor for text in SENTENCES}
    right: list[bool] = []

    def work(_: int) -> None:
        for text in texts:
            right.append(np.allclose(nlp(text).tensor, expected[text], rtol=0, atol=1e-5))

    in_threads(2, work)
    assert len(right) == 60
    assert all(right)


def interleaved(nlp: Any, module: torch.nn.Module) -> bool:
    """Check that a prediction is right if another one begins and ends while it runs."""
    expected = nlp(SENTENCES[0]).tensor
    entered, other_is_done = threading.Event(), threading.Event()
    result: list[np.ndarray] = []

    def hold(*args: Any) -> None:
        if threading.current_thread().name == "held":
            entered.set()
            assert other_is_done.wait(timeout=30)

    handle = next(module.children()).register_forward_pre_hook(hold)
    held = threading.Thread(
        target=lambda: result.append(nlp(SENTENCES[0]).tensor), name="held", daemon=True
    )
    held.start()
    assert entered.wait(timeout=30)
    nlp(SENTENCES[1])
    other_is_done.set()
    held.join(timeout=30)
    handle.remove()
    return np.allclose(result[0], expected, rtol=0, atol=1e-5)


def test_a_prediction_within_another(dropout_dir: Path) -> None:
    nlp = make_nlp(dropout_dir)
    assert interleaved(nlp, torch_model_of(nlp))


def test_stock_a_prediction_within_another_switches_dropout_on() -> None:
    nlp = make_stock([], dropout=0.5)
    assert not interleaved(nlp, stock_module(nlp))


# Empty docs


def with_empty_docs(nlp: Any) -> list[Example]:
    empty = [Example.from_dict(nlp.make_doc(""), {"cats": {"travel": 1.0, "food": 0.0}})]
    return [*empty, *make_examples(nlp, 4), *empty]


@pytest.mark.parametrize("listener", [LISTENER, STOCK_LISTENER], ids=["ours", "stock"])
def test_empty_docs_under_a_frozen_annotating_encoder(
    bert_dir: Path, listener: dict[str, Any]
) -> None:
    nlp = make_nlp(bert_dir, ALL, listener=listener)
    trained, tagger = weights_of(nlp), _flat(nlp, "tagger").copy()
    nlp.update(with_empty_docs(nlp), sgd=adam(), exclude=["transformer"], annotates=["transformer"])
    assert same(trained, weights_of(nlp), atol=0)
    assert np.abs(_flat(nlp, "tagger") - tagger).max() > 1e-4


def test_stock_empty_docs_under_a_frozen_annotating_encoder_are_an_error() -> None:
    nlp = make_stock(ALL)
    with pytest.raises(ValueError, match="E203"):
        nlp.update(
            with_empty_docs(nlp), sgd=adam(), exclude=["transformer"], annotates=["transformer"]
        )


def test_empty_docs_in_training(bert_dir: Path) -> None:
    nlp, reference = make_nlp(bert_dir, ALL), make_nlp(bert_dir, ALL)
    nlp.update(with_empty_docs(nlp), sgd=adam())
    reference.update(make_examples(reference, 4), sgd=adam())
    assert nlp(SENTENCES[0]).tensor.shape == reference(SENTENCES[0]).tensor.shape
    optimizer = adam()
    empty = [Example.from_dict(nlp.make_doc(""), {"cats": {"travel": 1.0, "food": 0.0}})]
    trained = weights_of(nlp)
    nlp.update(empty * 3, sgd=optimizer)
    assert same(trained, weights_of(nlp), atol=0)


# Accumulation, freezing by a setting, annotating


def test_gradients_accumulate(bert_dir: Path) -> None:
    pipes = ["tagger", "textcat"]  # the ner's loss depends on its own choices
    nlp, joined = make_nlp(bert_dir, pipes), make_nlp(bert_dir, pipes)
    examples = make_examples(nlp, 32)
    nlp.update(examples[:16], sgd=False)
    nlp.update(examples[16:], sgd=False)
    step(nlp, adam())
    joined.update(make_examples(joined, 32), sgd=False)
    step(joined, adam())
    assert same(weights_of(joined), weights_of(nlp))
    for name in pipes:
        assert _flat(nlp, name) == pytest.approx(_flat(joined, name), abs=1e-6)


def test_frozen_by_a_setting_the_heads_learn_alone(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger", "ner"], frozen=True)
    before, tagger = weights_of(nlp), _flat(nlp, "tagger").copy()
    optimizer, losses = adam(), {}
    for i in range(2):
        losses = nlp.update(make_examples(nlp, start=16 * i), sgd=optimizer)
    assert same(before, weights_of(nlp), atol=0)
    assert np.abs(_flat(nlp, "tagger") - tagger).max() > 1e-4
    assert losses["tagger"] > 0
    assert not any(p.requires_grad and p.grad is not None for p in torch_model_of(nlp).parameters())


def test_annotating_while_training(bert_dir: Path) -> None:
    nlp, reference = make_nlp(bert_dir, ALL), make_nlp(bert_dir, ALL)
    optimizers = adam(), adam()
    for i in range(3):
        nlp.update(
            make_examples(nlp, start=16 * i),
            sgd=optimizers[0],
            annotates=["transformer", "tagger"],
        )
        reference.update(make_examples(reference, start=16 * i), sgd=optimizers[1])
    assert same(weights_of(reference), weights_of(nlp))


def test_losses_contain_the_component(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger", "ner"])
    losses = nlp.update(make_examples(nlp), sgd=adam())
    assert losses.keys() == {"transformer", "tagger", "ner"}
    assert losses["transformer"] > 0
    assert nlp.get_pipe("transformer").update(make_examples(nlp)) == {"transformer": 0.0}


def test_dropout_of_the_encoder_is_on_in_updates(dropout_dir: Path) -> None:
    nlp = make_nlp(dropout_dir, ["tagger"])
    examples = make_examples(nlp)
    nlp.get_pipe("transformer").update(examples)
    (listener,) = listeners_of(nlp)
    in_training = np.concatenate(listener._outputs)
    vectors = nlp.get_pipe("transformer").predict([example.predicted for example in examples])
    assert np.abs(in_training - np.concatenate(vectors)).max() > 0.1


# Hidden states


def learn_hidden(nlp: Any, examples: list[Example], layers: Sequence[int]) -> Any:
    """Report the hidden states themselves as their gradient. RETURNS: the callback."""
    hidden, backprop = nlp.get_pipe("transformer").update_hidden(examples, layers)
    backprop(hidden)
    return backprop


def gradients_of(nlp: Any) -> dict[str, np.ndarray]:
    """Copy the gradients that the encoder has gathered."""
    named = torch_model_of(nlp).named_parameters()
    return {name: p.grad.numpy().copy() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("layers", [[2], [1], [0, 2, 1], [1, 1, 2, 2]])
@pytest.mark.parametrize("listener", [LISTENER, STOCK_LISTENER], ids=["ours", "stock"])
def test_hidden_states_and_listeners_learn_together(
    bert_dir: Path, layers: list[int], listener: Any
) -> None:
    nlp, alone, heads = (
        make_nlp(bert_dir, p, listener=listener) for p in (["tagger"], [], ["tagger"])
    )
    examples = make_examples(nlp)
    learn_hidden(nlp, examples, layers)
    assert not gradients_of(nlp)  # waits for the tagger
    losses = nlp.get_pipe("tagger").update(examples, sgd=False)

    learn_hidden(alone, make_examples(alone), layers)
    expected_losses = heads.update(make_examples(heads), sgd=False)
    assert losses["tagger"] == pytest.approx(expected_losses["tagger"], rel=1e-5)
    found, own, of_heads = map(gradients_of, (nlp, alone, heads))
    if 2 in layers:
        assert own.keys() == of_heads.keys()
    else:
        assert not any("layer.1." in name for name in own)
    for name, gradient in found.items():
        expected = own.get(name, 0) + of_heads[name]
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(gradient / scale, expected / scale, rtol=0, atol=1e-5)


def test_hidden_states_are_those_of_the_docs(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"])
    docs = [nlp.make_doc(text) for text in ("", SENTENCES[0], "a  b", SENTENCES[1])]
    examples = [Example(doc, doc.copy()) for doc in docs]
    hidden, _ = nlp.get_pipe("transformer").update_hidden(examples, [1, 0])
    expected = encoder_of(nlp).predict_docs(docs, nlp.get_pipe("transformer").model.ops, [1, 0])
    assert hidden.shape == (sum(map(len, docs)), 2 * WIDTH)
    np.testing.assert_allclose(hidden, np.concatenate(expected), rtol=0, atol=1e-5)
    (listener,) = listeners_of(nlp)
    vectors = nlp.get_pipe("transformer").predict(docs)
    for found, vector in zip(listener._outputs, vectors, strict=True):
        assert found.flags["C_CONTIGUOUS"]
        np.testing.assert_allclose(found, vector, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layers", [[2], [1]])
def test_hidden_states_learn_without_a_listener_that_reports(
    bert_dir: Path, layers: list[int]
) -> None:
    nlp, alone = make_nlp(bert_dir, ["tagger"]), make_nlp(bert_dir)
    before = weights_of(nlp)
    for each in (nlp, alone):
        for i in range(3):
            learn_hidden(each, make_examples(each, start=16 * i), layers)
            step(each, adam())
    assert not same(before, weights_of(alone), atol=1e-4)
    assert same(weights_of(nlp), weights_of(alone), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("layers", [[1], [1, 0], [0]])
def test_layers_above_those_that_learn_do_not_decay(
    bert_dir: Path, layers: list[int], pooling: str
) -> None:
    """If no listener reports, even after a batch in which one did."""
    nlp = make_nlp(bert_dir, ["tagger"], pooling=pooling)
    optimizer = adam()
    nlp.update(make_examples(nlp), sgd=optimizer)
    before = weights_of(nlp)
    for i in range(2):
        learn_hidden(nlp, make_examples(nlp, start=16 * i), layers)
        step(nlp, optimizer)
    after = weights_of(nlp)
    upper = [name for name in before if any(f"layer.{i}." in name for i in range(max(layers), 2))]
    assert len(upper) >= 16
    for name, weights in before.items():
        unchanged = np.array_equal(after[name], weights)
        assert unchanged == (name in upper), name


def test_a_step_waits_for_the_gradient_of_hidden_states(bert_dir: Path) -> None:
    nlp, reference = make_nlp(bert_dir), make_nlp(bert_dir)
    before = weights_of(nlp)
    hidden, backprop = nlp.get_pipe("transformer").update_hidden(make_examples(nlp), [2])
    step(nlp, adam())
    assert same(before, weights_of(nlp), atol=0)
    backprop(hidden)
    learn_hidden(reference, make_examples(reference), [2])
    step(reference, adam())
    assert not same(before, weights_of(nlp), atol=1e-4)
    assert same(weights_of(reference), weights_of(nlp))


def test_annotation_between_hidden_states_and_heads(bert_dir: Path) -> None:
    """The encoder may annotate the batch's own docs before the heads report."""
    nlp, reference = make_nlp(bert_dir, ["tagger"]), make_nlp(bert_dir, ["tagger"])
    for each in (nlp, reference):
        examples = make_examples(each)
        learn_hidden(each, examples, [1])
        if each is nlp:
            list(each.get_pipe("transformer").pipe([eg.predicted for eg in examples]))
        each.get_pipe("tagger").update(examples, sgd=False)
        step(each, adam())
    assert same(weights_of(reference), weights_of(nlp), atol=0)


def test_hidden_states_and_docs_without_pieces(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"])
    before = weights_of(nlp)
    for docs in ([], [nlp.make_doc("")], [nlp.make_doc("  "), nlp.make_doc("")]):
        examples = [Example(doc, doc.copy()) for doc in docs]
        hidden, backprop = nlp.get_pipe("transformer").update_hidden(examples, [1])
        assert hidden.shape == (sum(map(len, docs)), WIDTH)
        backprop(hidden)
        step(nlp, adam())
    assert same(before, weights_of(nlp), atol=0)


def test_losses_are_what_listeners_report(bert_dir: Path) -> None:
    nlp, reference = make_nlp(bert_dir, ["tagger"]), make_nlp(bert_dir, ["tagger"])
    losses: dict[str, float] = {}
    examples = make_examples(nlp)
    hidden, backprop = nlp.get_pipe("transformer").update_hidden(examples, [2], losses=losses)
    assert losses == {"transformer": 0.0}
    backprop(hidden)
    nlp.get_pipe("tagger").update(examples, sgd=False, losses=losses)
    expected = reference.update(make_examples(reference), sgd=False)
    assert losses == pytest.approx(expected, rel=1e-5)


def test_hidden_states_that_report_twice_or_too_late_are_an_error(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"])
    backprop = learn_hidden(nlp, make_examples(nlp), [1])
    with pytest.raises(RuntimeError, match="gradient of the hidden states of 'transformer' w"):
        backprop(np.zeros((96, WIDTH), dtype="f"))
    hidden, backprop = nlp.get_pipe("transformer").update_hidden(make_examples(nlp), [1])
    nlp.update(make_examples(nlp), sgd=False)
    with pytest.raises(RuntimeError, match="or too late"):
        backprop(hidden)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"frozen": True}, "frozen = True"), ({"learn_rate_scale": 0.0}, r"learn_rate_scale = 0\.0")],
)
def test_hidden_states_of_a_frozen_encoder_are_an_error(
    bert_dir: Path, settings: Any, message: str
) -> None:
    nlp = make_nlp(bert_dir, ["tagger"], **settings)
    with pytest.raises(ConfigError, match=f"'transformer' cannot learn.*{message}"):
        nlp.get_pipe("transformer").update_hidden(make_examples(nlp), [1])


def test_what_is_no_example_is_an_error_of_the_method_that_was_called(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir)
    pipe, docs = nlp.get_pipe("transformer"), [nlp.make_doc(SENTENCES[0])]
    with pytest.raises(TypeError, match=r"DistilTransformerPipe\.update_hidden'?"):
        pipe.update_hidden(docs, [1])
    with pytest.raises(TypeError, match=r"DistilTransformerPipe\.update(?!_hidden)"):
        pipe.update(docs)


def test_layers_on_the_onnx_engine_are_an_error(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir)
    model = nlp.get_pipe("transformer").model
    docs = [nlp.make_doc(SENTENCES[0])]
    (expected,) = nlp.get_pipe("transformer").predict(docs)
    model.shims[0] = SourceEncoder(encoder_of(nlp)).to_shim(Precision())
    assert encoder_of(nlp).n_layers == LAYERS
    (found,) = encoder_of(nlp).predict_docs(docs, model.ops)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    with pytest.raises(ConfigError, match=r"layers = \[1, 2\]: .* need engine = 'torch'"):
        encoder_of(nlp).predict_docs(docs, model.ops, [1, 2])
    with pytest.raises(ConfigError, match="This encoder cannot be trained"):
        nlp.get_pipe("transformer").update_hidden(make_examples(nlp), [2])


def test_a_config_without_the_number_of_layers_is_an_error_where_it_is_needed(
    bert_dir: Path,
) -> None:
    nlp = make_nlp(bert_dir)
    pipe, docs = nlp.get_pipe("transformer"), [nlp.make_doc(SENTENCES[0])]
    (expected,) = pipe.predict(docs)
    shim = SourceEncoder(encoder_of(nlp)).to_shim(Precision())
    files = shim.to_files()
    config = json.loads(files["config.json"])
    del config["num_hidden_layers"]
    pipe.model.shims[0] = shim.from_files({**files, "config.json": json.dumps(config).encode()})
    np.testing.assert_allclose(pipe.predict(docs)[0], expected, rtol=0, atol=1e-4)
    with pytest.raises(WeightsError, match=r"how many layers this bert encoder has.*num_hidden_l"):
        print(encoder_of(nlp).n_layers)


# References


@pytest.mark.parametrize("drop", [(), ("entities",)], ids=["gold", "last-without-gold"])
def test_nothing_is_kept_after_a_step(bert_dir: Path, drop: Sequence[str]) -> None:
    nlp = make_nlp(bert_dir, ["tagger", "ner"])
    examples = make_examples(nlp, drop=drop)
    nlp.get_pipe("transformer").update(examples)
    kept = weakref.ref(listeners_of(nlp)[0]._outputs[0].base)
    assert kept() is not None
    nlp.get_pipe("tagger").update(examples)
    nlp.get_pipe("ner").update(examples)
    step(nlp, adam())
    assert all(listener._outputs is None for listener in listeners_of(nlp))
    assert all(listener._backprop is None for listener in listeners_of(nlp))
    gc.collect()
    assert kept() is None
    assert not [o for o in gc.get_objects() if type(o) is torch.Tensor and o.grad_fn is not None]


def test_nothing_of_hidden_states_is_kept_after_a_step(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"])
    backprop = learn_hidden(nlp, make_examples(nlp), [1])
    step(nlp, adam())
    assert all(listener._outputs is None for listener in listeners_of(nlp))
    gc.collect()
    assert not [o for o in gc.get_objects() if type(o) is torch.Tensor and o.grad_fn is not None]
    with pytest.raises(RuntimeError, match="too late"):
        backprop(np.zeros((96, WIDTH), dtype="f"))


def test_stock_outputs_are_kept_after_a_step() -> None:
    nlp = make_stock(["tagger"])
    nlp.update(make_examples(nlp), sgd=adam())
    assert listeners_of(nlp)[0]._outputs is not None


@pytest.mark.parametrize("pipes", [["tagger"], ["tagger", "ner"]])
def test_a_listener_that_reports_twice_is_an_error(bert_dir: Path, pipes: list[str]) -> None:
    nlp = make_nlp(bert_dir, pipes)
    examples = make_examples(nlp)
    nlp.get_pipe("transformer").update(examples)
    tagger = nlp.get_pipe("tagger").model
    predictions, backprop = tagger.begin_update([example.predicted for example in examples])
    backprop(predictions)
    with pytest.raises(RuntimeError, match="listens to 'transformer' reported a gradient twice"):
        backprop(predictions)


def test_a_gradient_of_an_earlier_batch_is_an_error(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"])
    examples = make_examples(nlp)
    nlp.get_pipe("transformer").update(examples)
    predictions, backprop = nlp.get_pipe("tagger").model.begin_update(
        [example.predicted for example in examples]
    )
    nlp.get_pipe("transformer").update(examples)
    with pytest.raises(RuntimeError, match="or too late"):
        backprop(predictions)


def test_an_encoder_without_listeners_is_left_alone(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir)
    before = weights_of(nlp)
    assert nlp.update(make_examples(nlp), sgd=adam()) == {"transformer": 0.0}
    assert same(before, weights_of(nlp), atol=0)
    assert not encoder_of(nlp)._has_gradients
