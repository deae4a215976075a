"""`spacy_distil.explain` by integrated gradients, against references in plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from thinc.api import fix_random_seed

import spacy_distil
from spacy_distil.errors import ConfigError
from spacy_distil.trust.explanations.documents import run_before
from spacy_distil.trust.explanations.integrated_gradients import Line, integrate
from spacy_distil.trust.explanations.scores import log_odds, predict
from spacy_distil.trust.explanations.targets import find_targets, read_request
from tests.util import (
    LISTENER,
    SENTENCES,
    add_heads,
    encoder_of,
    initialize_nlp,
    make_nlp,
    random_text,
    torch_model_of,
    weights_of,
)

TAGGER = {"@architectures": "spacy.Tagger.v2", "tok2vec": dict(LISTENER)}


def make_pipeline(encoder: Path, **settings: Any) -> Any:
    """A pipe of each kind, with random weights."""
    fix_random_seed(0)
    nlp = make_nlp(encoder, ["tagger", "morphologizer"], initialize=False, **settings)
    nlp.add_pipe("distil_ner", config={"model": TAGGER})
    add_heads(nlp, ["textcat", "textcat_multilabel"])
    initialize_nlp(nlp)
    return nlp


@pytest.fixture(scope="module")
def nlp(bert_dir: Path) -> Any:
    return make_pipeline(bert_dir)


def fresh(nlp: Any, text: str, name: str) -> Any:
    """A doc that the pipes before one have processed."""
    (doc,) = run_before(nlp, name, [nlp.make_doc(text)])
    return doc


def as_list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


def check_complete(found: Any) -> None:
    """The attributions add up to the difference of the scores."""
    for each in as_list(found):
        difference = each.score - each.baseline
        error = abs(each.attributions.sum() - difference)
        assert error == pytest.approx(each.error, abs=1e-9)
        assert error <= 1e-2 * max(1, abs(difference))
        assert each.attributions.shape == (len(each.doc),)


# Log-odds


def test_log_odds_of_one_row_are_those_of_its_probability() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (3, 5))
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for row, column in ((0, 1), (2, 4)):
        p = probs[row, column]
        score, _ = log_odds(logits, [row], [column])
        assert score == pytest.approx(np.log(p / (1 - p)), rel=1e-9)
    product = probs[0, 1] * probs[2, 4]
    score, _ = log_odds(logits, [0, 2], [1, 4])
    assert score == pytest.approx(np.log(product / (1 - product)), rel=1e-9)


@pytest.mark.parametrize("scale", [1, 8])
def test_the_gradient_of_log_odds(scale: float) -> None:
    logits = np.random.default_rng(1).normal(0, scale, (4, 3))
    rows, classes = [0, 1, 3], [2, 2, 0]
    _, gradient = log_odds(logits, rows, classes)
    numeric = np.zeros_like(logits)
    for place in np.ndindex(logits.shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = logits.copy()
            moved[place] += step
            ends.append(log_odds(moved, rows, classes)[0])
        numeric[place] = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-8)


def test_log_odds_keep_their_digits_where_a_pipe_is_sure() -> None:
    for logit in (40.0, -40.0, 60.0):
        score, gradient = log_odds(np.array([[logit, 0.0]]), [0], [0])
        assert score == pytest.approx(logit, rel=1e-9)
        assert gradient == pytest.approx(np.array([[1.0, -1.0]]), rel=1e-9)


# References in plain torch


def reference_slopes(nlp: Any, name: str, doc: Any, target: Any, point: float) -> np.ndarray:
    """The derivative along the line at a point, by token: embeddings, encoder, mean of pieces and
    linear layer in torch, with the log-odds as its functions compute them.
    """
    encoder = encoder_of(nlp)
    module: Any = torch_model_of(nlp)
    tokenizer = encoder.loaded.tokenizer
    (pieces,) = tokenizer([doc.text])
    mask = tokenizer.read_vocabulary()["[MASK]"]
    ids = torch.tensor([[*tokenizer.prefix, *pieces.ids.tolist(), *tokenizer.suffix]])
    masked = ids.clone()
    masked[0, 1:-1] = mask
    embed = module.get_input_embeddings()
    start, end = embed(masked).detach(), embed(ids).detach()
    inputs = (start + point * (end - start)).requires_grad_()
    hidden = module(inputs_embeds=inputs).last_hidden_state[0, 1:-1]
    owners = [
        [i for i in range(len(pieces.ids)) if begin < pieces.ends[i] and pieces.starts[i] < stop]
        for begin, stop in ((token.idx, token.idx + len(token)) for token in doc)
    ]
    tokens = torch.stack([hidden[own].mean(dim=0) for own in owners])
    if name.startswith("textcat"):
        tokens = tokens.mean(dim=0, keepdim=True)
    (layer,) = [node for node in nlp.get_pipe(name).model.walk() if node.has_param("W")]
    weight, bias = (torch.from_numpy(layer.get_param(k).copy()) for k in ("W", "b"))
    logits = tokens @ weight.T + bias
    if name == "textcat_multilabel":
        score = logits[0, target.rows[0]]
    else:
        logs = logits.log_softmax(dim=1)[list(target.rows), list(target.classes)].sum()
        score = logs - torch.log(-torch.expm1(logs))
    (gradient,) = torch.autograd.grad(score, inputs)
    by_piece = (gradient * (end - start)).sum(dim=2)[0, 1:-1].numpy()
    return np.array([by_piece[own].sum() for own in owners])


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("textcat", "cats"),
        ("textcat_multilabel", "cats"),
        ("tagger", "tag:2"),
        ("morphologizer", "pos:2"),
        ("distil_ner", "ents"),
    ],
)
@pytest.mark.parametrize("point", [0.0, 0.3, 1.0])
def test_gradients_are_those_of_torch(nlp: Any, name: str, target: str, point: float) -> None:
    weights = weights_of(nlp)
    doc = nlp("Ann visited unbelievable Rome in 2021.")
    wanted = find_targets(nlp, name, fresh(nlp, doc.text, name), read_request(nlp, target))[0]
    line = Line(nlp.get_pipe(name), encoder_of(nlp), doc)
    _, found = line.slopes(wanted, np.array([point]))
    expected = reference_slopes(nlp, name, doc, wanted, point)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-5)
    # Nothing has been learned.
    assert all(parameter.grad is None for parameter in torch_model_of(nlp).parameters())
    for node in nlp.get_pipe(name).model.walk():
        assert not any(
            node.has_grad(each) and node.get_grad(each).any() for each in node.grad_names
        )
    for key, value in weights_of(nlp).items():
        assert (value == weights[key]).all()


# Completeness


@pytest.mark.parametrize("target", ["cats", "cats:food", "ents", "tag:1", "pos"])
def test_attributions_are_complete(nlp: Any, target: str) -> None:
    for text in SENTENCES:
        found = spacy_distil.explain(nlp, text, target)
        assert as_list(found)
        check_complete(found)
        assert all(each.method == "integrated_gradients" for each in as_list(found))
        assert any(np.abs(each.attributions).max() > 0.05 for each in as_list(found))


def test_the_score_is_the_one_of_the_pipeline(nlp: Any) -> None:
    doc = nlp(SENTENCES[0])
    for label in nlp.get_pipe("textcat_multilabel").labels:
        found = spacy_distil.explain(nlp, doc.text, f"cats:{label}")
        assert found.target.pipe == "textcat_multilabel"
        assert found.probability == pytest.approx(doc.cats[label], rel=1e-4)
        assert found.doc.cats[label] == pytest.approx(doc.cats[label], rel=1e-5)
    confidence = spacy_distil.confidence(nlp, doc)["tagger"]
    for each, token, expected in zip(
        spacy_distil.explain(nlp, doc.text, "tag"), doc, confidence, strict=True
    ):
        assert (each.target.what, each.target.label) == (token.text, token.tag_)
        assert each.probability == pytest.approx(expected, rel=1e-4)


def test_the_baseline_is_the_text_of_masks(nlp: Any) -> None:
    """Texts that have pieces and tokens alike, as many of them, have the same baseline."""
    one, two = (spacy_distil.explain(nlp, text, "cats:food") for text in ("b c .", "c d ,"))
    sizes = [encoder_of(nlp).prepare([each.doc])[0].last.tolist() for each in (one, two)]
    assert sizes[0] == sizes[1]
    assert one.baseline == pytest.approx(two.baseline, abs=1e-5)
    assert abs(one.score - two.score) > 1e-3


def test_entities_are_explained_in_every_scheme(bert_dir: Path) -> None:
    for scheme in ("BILUO", "IOB2", "IOB1", "IO"):
        nlp = make_nlp(bert_dir, [], initialize=False)
        nlp.add_pipe("distil_ner", config={"model": TAGGER, "scheme": scheme})
        initialize_nlp(nlp)
        text = "Ann visited  \n Rome in the spring of 2021 in Oslo."
        doc = nlp(text)
        assert doc.ents, scheme
        found = spacy_distil.explain(nlp, text, "ents")
        assert [(e.target.start, e.target.end, e.target.label) for e in found] == [
            (ent.start, ent.end, ent.label_) for ent in doc.ents
        ]
        check_complete(found)
        names = nlp.get_pipe("distil_ner").tag_names
        logits = nlp.get_pipe("distil_ner").model.predict([doc])[0].astype("d")
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        for each in found:
            # Whitespace has a tag in BILUO only.
            inside = range(each.target.start, each.target.end)
            rows = [i for i in inside if scheme == "BILUO" or not doc[i].is_space]
            assert list(each.target.rows) == rows
            assert {names[k].split("-")[1] for k in each.target.classes} == {each.target.label}
            total = logs[rows, list(each.target.classes)].sum()
            assert each.score == pytest.approx(total - np.log(-np.expm1(total)), rel=1e-3)


def test_every_family(encoder_dir: Path) -> None:
    """At its end, the line has the hidden states that the engine predicts."""
    nlp = make_nlp(encoder_dir, ["textcat"])
    found = spacy_distil.explain(nlp, SENTENCES[3], "cats")
    check_complete(found)
    cats = nlp(SENTENCES[3]).cats
    assert found.probability == pytest.approx(max(cats.values()), rel=1e-4)


@pytest.mark.parametrize("pooling", ["first", "last", "sum", "max", "cls"])
def test_every_pooling(bert_dir: Path, pooling: str) -> None:
    nlp = make_nlp(bert_dir, ["textcat", "tagger"], pooling=pooling)
    for target in ("cats", "tag:3"):
        found = spacy_distil.explain(nlp, SENTENCES[1], target)
        check_complete(found)
        assert found.attributions.any()


@pytest.mark.parametrize(
    "model",
    [
        {
            "@architectures": "spacy.TextCatEnsemble.v2",
            "linear_model": {
                "@architectures": "spacy.TextCatBOW.v3",
                "exclusive_classes": True,
                "length": 1024,
                "ngram_size": 1,
                "no_output_layer": False,
            },
        },
        {"@architectures": "spacy.TextCatParametricAttention.v1", "exclusive_classes": True},
        {
            "@architectures": "spacy-distil.TextCatHead.v1",
            "exclusive_classes": True,
            "hidden": "tanh",
        },
    ],
    ids=lambda model: model["@architectures"],
)
def test_other_heads(bert_dir: Path, model: dict[str, Any]) -> None:
    nlp = make_nlp(bert_dir, [], initialize=False)
    nlp.add_pipe("textcat", config={"model": {**model, "tok2vec": dict(LISTENER)}})
    initialize_nlp(nlp)
    found = spacy_distil.explain(nlp, SENTENCES[0], "cats:food")
    check_complete(found)
    assert found.probability == pytest.approx(nlp(SENTENCES[0]).cats["food"], rel=1e-4)


def test_a_temperature_counts(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"])
    before = spacy_distil.explain(nlp, SENTENCES[0], "tag:2")
    nlp.get_pipe("tagger").model.get_ref("softmax").attrs["softmax_temperature"] = 4.0
    after = spacy_distil.explain(nlp, SENTENCES[0], "tag:2")
    check_complete(after)
    assert after.score != pytest.approx(before.score, rel=0.1)
    expected = spacy_distil.confidence(nlp, nlp(SENTENCES[0]))["tagger"][2]
    assert after.probability == pytest.approx(expected, rel=1e-4)


def test_dropout_of_the_last_update_does_not_count(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, [], initialize=False)
    model = {"@architectures": "spacy.TextCatParametricAttention.v1", "exclusive_classes": True}
    nlp.add_pipe("textcat", config={"model": {**model, "tok2vec": dict(LISTENER)}})
    initialize_nlp(nlp)
    before = spacy_distil.explain(nlp, SENTENCES[0]).attributions
    rates = [node for node in nlp.get_pipe("textcat").model.walk() if "dropout_rate" in node.attrs]
    assert rates
    for node in rates:
        node.attrs["dropout_rate"] = 0.9
    np.testing.assert_array_equal(spacy_distil.explain(nlp, SENTENCES[0]).attributions, before)
    assert all(node.attrs["dropout_rate"] == 0.9 for node in rates)


def test_an_encoder_inside_a_pipe(bert_dir: Path) -> None:
    """It has the same attributions as the shared one."""
    nlp = make_nlp(bert_dir, ["textcat", "tagger"])
    shared = spacy_distil.explain(nlp, SENTENCES[0], "tag:2")
    nlp.replace_listeners("transformer", "tagger", ["model.tok2vec"])
    nlp.remove_pipe("textcat")
    nlp.remove_pipe("transformer")
    own = spacy_distil.explain(nlp, SENTENCES[0], "tag:2")
    assert own.method == "integrated_gradients"
    np.testing.assert_allclose(own.attributions, shared.attributions, rtol=1e-5, atol=1e-7)


# Steps


def test_steps_double_until_the_sum_fits(nlp: Any) -> None:
    doc = fresh(nlp, SENTENCES[0], "tagger")
    target = find_targets(nlp, "tagger", doc, read_request(nlp, "tag:2"))[0]
    line = Line(nlp.get_pipe("tagger"), encoder_of(nlp), doc)
    errors = [integrate(line, target, steps).error for steps in (1, 2, 4)]
    assert errors[0] > 10 * integrate(line, target, 512).error
    assert integrate(line, target, 1).steps == 1
    # The trapezoidal rule by itself, with all points at once.
    _, slopes = line.slopes(target, np.linspace(0, 1, 17))
    expected = (slopes[1:] + slopes[:-1]).mean(axis=0) / 2
    found = integrate(line, target, 512)
    assert found.steps == 16
    np.testing.assert_allclose(found.attributions, expected, rtol=1e-6, atol=1e-9)


def test_doubling_uses_the_points_between(nlp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    doc = fresh(nlp, SENTENCES[0], "tagger")
    target = find_targets(nlp, "tagger", doc, read_request(nlp, "tag:2"))[0]
    line = Line(nlp.get_pipe("tagger"), encoder_of(nlp), doc)
    monkeypatch.setattr("spacy_distil.trust.explanations.integrated_gradients.TOLERANCE", 0.0)
    found = integrate(line, target, 64)
    assert found.steps == 64
    _, slopes = line.slopes(target, np.linspace(0, 1, 65))
    expected = (slopes[1:] + slopes[:-1]).mean(axis=0) / 2
    np.testing.assert_allclose(found.attributions, expected, rtol=1e-5, atol=1e-7)


def test_too_few_steps_are_a_warning(nlp: Any) -> None:
    with pytest.warns(UserWarning, match=r"do not add up.* after 1 steps. Set max_steps above 1"):
        found = spacy_distil.explain(nlp, SENTENCES[0], "tag:2", max_steps=1)
    assert found.error > 1e-2 * abs(found.score - found.baseline)


# Odd documents

ODD = (
    "\U0001f600 \U0001f469\u200d\U0001f4bb ok",
    "e\u0301 a\u0308\u0327\u0301 x",
    "a \x00\x07 b\x1b[31m",
    "\u0301",
)


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
@pytest.mark.parametrize("text", [" ", " \n\t ", *ODD])
def test_odd_documents(nlp: Any, text: str, method: Any) -> None:
    found = spacy_distil.explain(nlp, text, "cats:food", method)
    assert np.isfinite(found.attributions).all()
    assert np.isfinite(found.score)
    encoded, _ = encoder_of(nlp).prepare([found.doc])
    without = encoded.last <= encoded.first
    assert not found.attributions[without].any()
    assert found.attributions.any() == (not without.all())
    for each in as_list(spacy_distil.explain(nlp, text, "tag", method)):
        assert np.isfinite(each.attributions).all()
    assert isinstance(spacy_distil.explain(nlp, text, "ents", method), list)


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_an_empty_document(nlp: Any, method: Any) -> None:
    found = spacy_distil.explain(nlp, "", "cats", method)
    assert found.attributions.shape == (0,)
    assert np.isnan(found.score)
    assert "no tokens" in found.to_html()
    assert spacy_distil.explain(nlp, "", "ents", method) == []
    assert spacy_distil.explain(nlp, "", "tag", method) == []


def test_a_long_document_in_windows(bert_dir: Path) -> None:
    """Graphs are computed again where one batch does not hold all windows: to the same result."""
    import random

    text = random_text(random.Random(0), 150)
    found = {}
    for size in (100_000, 160):
        nlp = make_nlp(bert_dir, ["textcat", "tagger"], overlap=16, max_batch_pieces=size)
        doc = nlp.make_doc(text)
        encoded, batches = encoder_of(nlp).prepare([doc])
        assert len(encoded.windows) > 2
        assert (len([*batches]) == 1) == (size == 100_000)
        found[size] = [spacy_distil.explain(nlp, doc, target) for target in ("cats", "tag:40")]
        check_complete(found[size][0])
        check_complete(found[size][1])
    for one, other in zip(*found.values(), strict=True):
        np.testing.assert_allclose(one.attributions, other.attributions, rtol=1e-3, atol=1e-5)
        assert one.attributions.any()


def test_tokens_that_share_a_piece_divide_it(bert_dir: Path) -> None:
    from spacy.tokens import Doc

    nlp = make_nlp(bert_dir, ["textcat"])
    doc = Doc(nlp.vocab, ["v", "i", "sited", "Rome"], [False, False, True, False])
    encoded, _ = encoder_of(nlp).prepare([doc])
    assert encoded.first[0] == encoded.first[1]
    found = spacy_distil.explain(nlp, doc)
    check_complete(found)
    assert found.attributions[0] == pytest.approx(found.attributions[1], rel=1e-9)
    assert found.attributions[0]


def test_a_doc_is_not_changed(nlp: Any) -> None:
    doc = nlp.make_doc(SENTENCES[0])
    found = spacy_distil.explain(nlp, doc, "ents")
    assert not doc.has_annotation("ENT_IOB")
    assert found[0].doc is not doc
    assert [token.text for token in found[0].doc] == [token.text for token in doc]
    again = spacy_distil.explain(nlp, nlp(SENTENCES[0]), "ents")
    assert len(again) == len(found)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one.attributions, other.attributions)


def test_the_default_target(nlp: Any, bert_dir: Path) -> None:
    assert spacy_distil.explain(nlp, SENTENCES[0]).target.what.startswith("cats:")
    with nlp.select_pipes(disable=["textcat", "textcat_multilabel"]):
        assert spacy_distil.explain(nlp, SENTENCES[0])[0].target.pipe == "distil_ner"
        with nlp.select_pipes(disable=["distil_ner"]):
            assert spacy_distil.explain(nlp, SENTENCES[0])[0].target.pipe == "tagger"


def test_a_number_may_be_the_text_of_a_token(nlp: Any) -> None:
    found = spacy_distil.explain(nlp, "Ann visited Rome in 2021 and 2021", "tag:2021")
    assert (found.target.start, found.target.what) == (4, "2021")
    assert spacy_distil.explain(nlp, "Ann 0", "tag:0").target.what == "Ann"


# Errors


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("cats:no", "no such label. Labels: 'travel', 'food'"),
        ("cat", "target = 'cat': expected 'cats'"),
        ("cats:", "target = 'cats:': expected"),
        ("ents:PER", "expected 'cats'"),
        ("tag:99", "has 13 tokens, numbered from 0. Name another token."),
        ("tag:nowhere", "no token of the text is 'nowhere'"),
    ],
)
def test_targets_that_are_not_there(nlp: Any, target: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        spacy_distil.explain(nlp, "Ann visited Rome in the spring of 2021, and wrote . .", target)
    assert message in str(error.value)


def test_other_errors(nlp: Any) -> None:
    with pytest.raises(ConfigError, match="method = 'lime': expected one of auto, integrated"):
        spacy_distil.explain(nlp, "a", method="lime")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_steps = 0: expected at least 1"):
        spacy_distil.explain(nlp, "a", max_steps=0)
    with pytest.raises(ConfigError, match="the text has no tokens"):
        spacy_distil.explain(nlp, "", "tag:0")
    with pytest.raises(ConfigError, match=r"has 65 targets, and at most 64 .* as in 'tag:3'"):
        spacy_distil.explain(nlp, "a " * 65, "tag")
    with pytest.raises(ConfigError, match="text_or_doc is a list: expected one text or one Doc"):
        spacy_distil.explain(nlp, ["a"])  # type: ignore[arg-type]


def test_pipelines_without_such_a_pipe(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["ner"])
    with pytest.raises(ConfigError, match=r"it has 'transformer', 'ner'.*train a 'distil_ner'"):
        spacy_distil.explain(nlp, "a")
    with pytest.raises(ConfigError, match=r"no pipe for 'ents' .* train a 'distil_ner'"):
        spacy_distil.explain(nlp, "a", "ents")
    with pytest.raises(ConfigError, match="no pipe for 'cats' among 'transformer', 'ner'"):
        spacy_distil.explain(nlp, "a", "cats")


def test_a_pipe_that_merges_tokens(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"], initialize=False)
    nlp.add_pipe("distil_ner", config={"model": TAGGER})
    add_heads(nlp, ["textcat"])
    initialize_nlp(nlp)
    nlp.add_pipe("merge_entities", before="textcat")
    merging = next(text for text in SENTENCES if len(nlp(text)) < len(nlp.make_doc(text)))
    with pytest.raises(ConfigError, match="before 'textcat' merges or splits tokens"):
        spacy_distil.explain(nlp, merging, "cats")
    # Behind the pipe that is explained, it does not matter.
    assert len(spacy_distil.explain(nlp, merging, "tag:0").doc) == len(nlp.make_doc(merging))


def test_prediction_is_what_the_pipe_predicts(nlp: Any) -> None:
    """`predict` gives the logits of all kinds of pipes."""
    doc = nlp(SENTENCES[0])
    assert predict(nlp.get_pipe("textcat"), [doc])[0].shape == (1, 2)
    assert predict(nlp.get_pipe("textcat_multilabel"), [doc])[0].shape == (2, 2)
    assert predict(nlp.get_pipe("tagger"), [doc])[0].shape[0] == len(doc)
