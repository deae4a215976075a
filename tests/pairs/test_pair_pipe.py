"""`distil_pair`: classes and scores, training, files, and other pipes beside it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import pearsonr, spearmanr
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from thinc.api import Linear

from spacy_distil.component.listener import Listener
from spacy_distil.errors import ConfigError, CorpusError, WeightsError
from spacy_distil.export.quantize import quantize
from spacy_distil.pairs.other import LabelledPairs
from spacy_distil.pairs.pair_head import PairHead
from spacy_distil.pairs.pair_pipe import DistilPair
from spacy_distil.pairs.scoring import score_pairs
from tests.pairs.conftest import LABELS, PAIRS, build, pair_example, shim_of
from tests.util import SENTENCES, adam, encoder_of

TEXTS = [(SENTENCES[0], SENTENCES[1]), (SENTENCES[2], "No."), ("Yes.", SENTENCES[3])]


def examples(nlp: Language) -> list[Example]:
    return [pair_example(nlp, *pair, label) for pair, label in zip(TEXTS, LABELS, strict=True)]


def naive_logits(nlp: Language, text: str, other: str, join: str = "mean") -> np.ndarray:
    """The head on the first state of each window, window by window."""
    pipe: Any = nlp.get_pipe("pair")
    encoder = shim_of(nlp)
    model = encoder.engine.model  # type: ignore[attr-defined]
    found = []
    encoded = encoder.encode_pairs([(text, other)])
    for ids, second in zip(encoded.windows, encoded.seconds, strict=True):
        types = torch.from_numpy((np.arange(len(ids)) >= second).astype(np.int64))[None]
        with torch.inference_mode():
            states = model(input_ids=torch.from_numpy(ids)[None], token_type_ids=types)
        vector = states.last_hidden_state[0, 0].numpy()
        hidden, output = (pipe.model.get_ref(name) for name in ("hidden", "output_layer"))
        inner = np.tanh(hidden.get_param("W") @ vector + hidden.get_param("b"))
        found.append(output.get_param("W") @ inner + output.get_param("b"))
    return np.mean(found, axis=0) if join == "mean" else np.max(found, axis=0)


@pytest.mark.parametrize("join", ["mean", "max"])
def test_probabilities_are_those_of_a_loop_over_windows(join: str, bert_dir: Path) -> None:
    nlp = build(bert_dir, window=24, overlap=4)
    pipe: Any = nlp.get_pipe("pair")
    pipe.model.attrs["join"] = join
    found = pipe.classify(PAIRS)
    assert max(shim_of(nlp).encode_pairs(PAIRS).n_windows) > 4
    for pair, cats in zip(PAIRS, found, strict=True):
        expected = softmax(naive_logits(nlp, *pair, join))
        np.testing.assert_allclose(list(cats.values()), expected, atol=1e-5)
        assert list(cats) == list(LABELS)


def test_docs_strings_and_batches_give_the_same(nlp: Language) -> None:
    pipe: Any = nlp.get_pipe("pair")
    texts = pipe.classify(TEXTS)
    docs = pipe.classify([tuple(map(nlp.make_doc, pair)) for pair in TEXTS])
    alone = [pipe.classify([pair])[0] for pair in TEXTS]
    for others in (docs, alone):
        for own, other in zip(texts, others, strict=True):
            assert own == pytest.approx(other, abs=1e-5)
    assert pipe.classify([]) == []
    assert pipe.classify(iter(TEXTS)) == texts


def test_docs_that_name_another_text_get_categories(nlp: Language) -> None:
    docs = [nlp.make_doc(text) for text, _ in TEXTS]
    docs[0]._.other = TEXTS[0][1]
    docs[1]._.other = nlp.make_doc(TEXTS[1][1])
    docs[1].cats = {"else": 1.0}
    expected = nlp.get_pipe("pair").classify(TEXTS)  # type: ignore[attr-defined]
    one, two, three = nlp.pipe(docs)
    assert one.cats == pytest.approx(expected[0], abs=1e-5)
    assert two.cats == pytest.approx({"else": 1.0, **expected[1]}, abs=1e-5)
    assert not three.cats
    saved = DocBin(docs=[one], store_user_data=True).to_bytes()
    (loaded,) = DocBin().from_bytes(saved).get_docs(nlp.vocab)
    assert loaded._.other == TEXTS[0][1]
    one._.other = None
    assert one._.other is None
    with pytest.raises(ConfigError, match="expected a string, a doc or None"):
        one._.other = 3


def test_a_long_doc(nlp: Language) -> None:
    """300,000 characters beside a question: thousands of windows, and nothing is cut off."""
    text = " ".join(SENTENCES[:3]) + " "
    text *= 300_000 // len(text)
    (cats,) = nlp.get_pipe("pair").classify([("Is it so?", text)])  # type: ignore[attr-defined]
    assert sum(cats.values()) == pytest.approx(1)


@pytest.mark.parametrize("tagger", [False, True])
def test_gradients_are_those_of_torch(tagger: bool, bert_dir: Path) -> None:
    """With and without another pipe that learns on the same encoder."""
    nlp = build(bert_dir, tagger=tagger)
    nlp.update(tagged(nlp), sgd=False)
    found = gradients(nlp)
    expected = torch_gradients(build(bert_dir), TEXTS)
    if tagger:
        other = build(bert_dir, tagger=True)
        other.disable_pipe("pair")
        other.update(tagged(other), sgd=False)
        alone = gradients(other)
        assert not found.keys() - expected.keys() - alone.keys()
        expected = {name: expected.get(name, 0) + alone.get(name, 0) for name in found}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, expected[name], atol=2e-5, err_msg=name)


def tagged(nlp: Language) -> list[Example]:
    batch = examples(nlp)
    for example in batch:
        for token in example.reference:
            token.tag_ = "A"
    return batch


def gradients(nlp: Language) -> dict[str, Any]:
    """The gradients of the encoder, after its open batch has been closed."""
    transformer: Any = nlp.get_pipe("transformer")
    transformer._close()
    return {
        name: parameter.grad
        for name, parameter in transformer.model.shims[0].engine.model.named_parameters()
        if parameter.grad is not None
    }


def torch_gradients(nlp: Language, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Gradients of the cross-entropy of LABELS in order, by autograd."""
    pipe: Any = nlp.get_pipe("pair")
    encoder = shim_of(nlp)
    model = encoder.engine.model  # type: ignore[attr-defined]
    hidden, output = (
        [torch.from_numpy(pipe.model.get_ref(name).get_param(p)) for p in ("W", "b")]
        for name in ("hidden", "output_layer")
    )
    encoded = encoder.encode_pairs(pairs)
    for i, (ids, second) in enumerate(zip(encoded.windows, encoded.seconds, strict=True)):
        types = torch.from_numpy((np.arange(len(ids)) >= second).astype(np.int64))[None]
        states = model(input_ids=torch.from_numpy(ids)[None], token_type_ids=types)
        vector = states.last_hidden_state[0, 0]
        logits = output[0] @ torch.tanh(hidden[0] @ vector + hidden[1]) + output[1]
        torch.nn.functional.cross_entropy(logits[None], torch.tensor([i])).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_the_first_step_changes_the_shared_encoder(bert_dir: Path) -> None:
    nlp = build(bert_dir)
    before = encoder_of(nlp).to_bytes()
    losses: dict[str, float] = {}
    nlp.update(examples(nlp), sgd=adam(0.01), losses=losses)
    assert losses["pair"] > 0
    assert encoder_of(nlp).to_bytes() != before


def test_a_frozen_encoder_does_not_change(bert_dir: Path) -> None:
    for frozen in ("exclude", "setting"):
        nlp = build(bert_dir, **({"frozen": True} if frozen == "setting" else {}))
        before = encoder_of(nlp).to_bytes()
        head: Any = nlp.get_pipe("pair")
        old = head.model.get_ref("output_layer").get_param("W").copy()
        exclude = ["transformer"] if frozen == "exclude" else []
        nlp.update(examples(nlp), sgd=adam(0.01), exclude=exclude)
        assert encoder_of(nlp).to_bytes() == before
        assert np.abs(head.model.get_ref("output_layer").get_param("W") - old).max() > 0


def test_it_learns(bert_dir: Path) -> None:
    nlp = build(bert_dir)
    optimizer = adam(0.005)
    for _ in range(40):
        nlp.update(examples(nlp), sgd=optimizer)
    found = nlp.get_pipe("pair").classify(TEXTS)  # type: ignore[attr-defined]
    assert [max(cats, key=cats.__getitem__) for cats in found] == list(LABELS)
    scores = nlp.evaluate(examples(nlp))
    assert scores["pair_acc"] == scores["pair_score"] == 1.0
    # As `spacy evaluate` reads documents: the predicted docs have the text alone.
    plain = [Example(nlp.make_doc(e.text), e.reference) for e in examples(nlp)]
    assert nlp.evaluate(plain)["pair_acc"] == 1.0


@pytest.mark.parametrize("output", ["classes", "probability", "number"])
def test_gradients_of_the_losses_by_differences(output: str, bert_dir: Path) -> None:
    nlp = build(bert_dir)
    pipe: Any = nlp.get_pipe("pair")
    pipe.cfg["output"] = output
    batch = examples(nlp)
    if output != "classes":
        pipe.cfg["labels"] = ["score"]
        for example, value in zip(batch, (0.1, 0.5, 1.0), strict=True):
            example.reference.cats = {"score": value}
    logits = np.random.default_rng(0).normal(size=(3, len(pipe.labels)))
    loss, gradient = pipe.get_loss(batch, logits)
    for place in np.ndindex(logits.shape):
        moved = logits.copy()
        moved[place] += 1e-4
        other, _ = pipe.get_loss(batch, moved)
        assert (other - loss) / 1e-4 == pytest.approx(gradient[place], abs=1e-3)
    if output == "classes":
        assert loss == pytest.approx(-np.trace(log_softmax(logits, axis=1)), rel=1e-5)


@pytest.mark.parametrize("output", ["probability", "number"])
def test_scores(output: str, bert_dir: Path) -> None:
    nlp = spacy.blank("en")
    own = {"@architectures": "spacy-distil.DistilTransformer.v1", "name": str(bert_dir)}
    nlp.add_pipe("distil_transformer", name="transformer", config={"model": own})
    pipe: Any = nlp.add_pipe("distil_pair", name="pair", config={"output": output})
    batch = [pair_example(nlp, *pair, None) for pair in TEXTS]
    values = [0.9, 0.1, 0.5] if output == "probability" else [4.0, -1.5, 2.0]
    for example, value in zip(batch, values, strict=True):
        example.reference.cats = {"related": value}
    nlp.initialize(lambda: batch)
    optimizer = adam(0.005)
    for _ in range(60):
        nlp.update(batch, sgd=optimizer)
    found = [cats["related"] for cats in pipe.classify(TEXTS)]
    np.testing.assert_allclose(found, values, atol=0.25)
    scores = nlp.evaluate(batch)
    assert scores["pair_spearman"] == pytest.approx(spearmanr(found, values).statistic)
    assert scores["pair_pearson"] == pytest.approx(pearsonr(found, values).statistic)
    if output == "probability":
        batch[0].reference.cats = {"related": 4.0}
        with pytest.raises(ValueError, match='For other numbers set output = "number"'):
            nlp.update(batch)


def test_scores_of_classes_are_those_of_loops() -> None:
    generator = np.random.default_rng(1)
    truth, predicted = np.eye(3)[generator.integers(0, 3, 50)], generator.random((50, 3))
    scores = score_pairs(truth, predicted, LABELS, is_exclusive=True)
    sides = truth.argmax(axis=1), predicted.argmax(axis=1)
    assert scores["pair_acc"] == pytest.approx((sides[0] == sides[1]).mean())
    pairs = list(zip(*(side.tolist() for side in sides), strict=True))
    for i, label in enumerate(LABELS):
        hits = sum(one == other == i for one, other in pairs)
        f = 2 * hits / (sum(one == i for one, _ in pairs) + sum(other == i for _, other in pairs))
        assert scores["pair_f_per_type"][label]["f"] == pytest.approx(f)
    found = [scores["pair_f_per_type"][label]["f"] for label in LABELS]
    assert scores["pair_macro_f"] == pytest.approx(sum(found) / 3)
    assert score_pairs(truth[:0], predicted[:0], LABELS, is_exclusive=True) == {}


def test_files_and_copies(nlp: Language, tmp_path: Path) -> None:
    expected = nlp.get_pipe("pair").classify(TEXTS)  # type: ignore[attr-defined]
    nlp.to_disk(tmp_path / "pipeline")
    others: list[Any] = [
        spacy.load(tmp_path / "pipeline"),
        spacy.blank("en").from_config(nlp.config).from_bytes(nlp.to_bytes()),
        pickle.loads(pickle.dumps(nlp)),
    ]
    for other in others:
        assert other.get_pipe("pair").classify(TEXTS) == expected
        # The pipe and the other pipes have one encoder.
        assert shim_of(other) is encoder_of(other)
    weights = tmp_path / "pipeline" / "pair" / "model"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="model"):
        spacy.load(tmp_path / "pipeline")


def test_an_encoder_of_its_own(bert_dir: Path, tmp_path: Path) -> None:
    nlp = build(bert_dir)
    expected = nlp.get_pipe("pair").classify(TEXTS)  # type: ignore[attr-defined]
    nlp.replace_listeners("transformer", "pair", ["model.tok2vec"])
    nlp.remove_pipe("transformer")
    found = nlp.get_pipe("pair").classify(TEXTS)  # type: ignore[attr-defined]
    assert found == [pytest.approx(cats, abs=1e-6) for cats in expected]
    nlp.to_disk(tmp_path / "own")
    loaded = spacy.load(tmp_path / "own")
    again = loaded.get_pipe("pair").classify(TEXTS)
    assert again == [pytest.approx(cats, abs=1e-6) for cats in found]
    before = shim_of(loaded).to_bytes()
    loaded.update(examples(loaded), sgd=adam(0.01))
    assert shim_of(loaded).to_bytes() != before


def test_other_pipes_are_untouched(bert_dir: Path) -> None:
    nlp = build(bert_dir, tagger=True)
    docs = [nlp.make_doc(text) for text, _ in TEXTS]
    plain = list(nlp.pipe([doc.copy() for doc in docs]))
    for doc, (_, other) in zip(docs, TEXTS, strict=True):
        doc._.other = other
    for doc, same in zip(nlp.pipe(docs), plain, strict=True):
        np.testing.assert_array_equal(doc.tensor, same.tensor)
        assert [token.tag for token in doc] == [token.tag for token in same]
        assert doc.cats
        assert not same.cats


def test_pairs_of_the_predicted_doc(bert_dir: Path) -> None:
    """As in Example.from_dict: the reference has the categories alone."""
    nlp = build(bert_dir)
    doc = nlp.make_doc(SENTENCES[0])
    doc._.other = SENTENCES[1]
    cats = {label: float(label == "neutral") for label in LABELS}
    one = Example.from_dict(doc, {"cats": cats})
    losses: dict[str, float] = {}
    nlp.update([one], sgd=adam(0.001), losses=losses)
    assert losses["pair"] > 0
    assert "pair_acc" in nlp.evaluate([one])
    one.reference.cats = dict.fromkeys(LABELS, 0.0)
    losses = {}
    nlp.update([one], sgd=adam(0.001), losses=losses)
    assert losses["pair"] == 0, "no class is annotated"


def test_annotation_that_does_not_sum_to_1(bert_dir: Path) -> None:
    nlp = build(bert_dir)
    pipe: Any = nlp.get_pipe("pair")
    logits = np.random.default_rng(0).normal(size=(2, 3))
    batch = examples(nlp)[:2]
    batch[0].reference.cats = {"entailment": 1.0, "neutral": 1.0}
    batch[1].reference.cats = {"entailment": 0.4}
    loss, gradient = pipe.get_loss(batch, logits)
    for place in np.ndindex(logits.shape):
        moved = logits.copy()
        moved[place] += 1e-4
        difference = (pipe.get_loss(batch, moved)[0] - loss) / 1e-4
        assert difference == pytest.approx(gradient[place], abs=1e-3)


@pytest.mark.parametrize("n_outputs", [3, 4])
def test_a_number_of_outputs_in_the_config(n_outputs: int, bert_dir: Path) -> None:
    nlp = spacy.blank("en")
    own = {"@architectures": "spacy-distil.DistilTransformer.v1", "name": str(bert_dir)}
    nlp.add_pipe("distil_transformer", name="transformer", config={"model": own})
    model = {"@architectures": "spacy-distil.PairHead.v1", "nO": n_outputs}
    nlp.add_pipe("distil_pair", name="pair", config={"model": model})
    if n_outputs == 4:
        with pytest.raises(ConfigError, match=r"has 3 labels .* but its model nO = 4"):
            nlp.initialize(lambda: examples(nlp))
    else:
        nlp.initialize(lambda: examples(nlp))
        assert nlp.get_pipe("pair").labels == LABELS


def test_a_sourced_pipe_says_that_its_encoder_has_changed(
    bert_dir: Path, encoder_dirs: dict[str, Path]
) -> None:
    nlp = build(bert_dir)
    new = spacy.blank("en")
    own = {"@architectures": "spacy-distil.DistilTransformer.v1", "name": str(bert_dir)}
    new.add_pipe("distil_transformer", name="transformer", config={"model": own})
    new.initialize()
    with pytest.warns(UserWarning, match="with the encoder 'transformer' of another pipeline"):
        new.add_pipe("pair", source=nlp)


def test_quantize_compares_the_pairs_of_its_corpus(bert_dir: Path, tmp_path: Path) -> None:
    """And scores them: the predicted docs of spaCy's reader have the text alone."""
    nlp = build(bert_dir)
    nlp.to_disk(tmp_path / "pipeline")
    docs = []
    for text, other in TEXTS:
        doc = nlp.make_doc(text)
        doc._.other = other
        (cats,) = nlp.get_pipe("pair").classify([(text, other)])  # type: ignore[attr-defined]
        best = max(cats, key=cats.__getitem__)
        doc.cats = {label: float(label == best) for label in LABELS}
        docs.append(doc)
    DocBin(docs=docs, store_user_data=True).to_disk(tmp_path / "pairs.spacy")
    lines: list[str] = []
    result = quantize(
        tmp_path / "pipeline",
        tmp_path / "fp32",
        corpus=tmp_path / "pairs.spacy",
        precision="fp32",
        log=lines.append,
    )
    assert not any("no pairs of texts" in line for line in lines)
    assert result.agreement.original_scores["pair_acc"] == 1.0
    assert result.agreement.candidate_scores["pair_acc"] == 1.0
    (measure,) = (each for each in result.agreement.measures if each.pipe == "pair")
    assert 0 < (measure.max_difference or 0) < 1e-3
    DocBin(docs=[nlp.make_doc(text) for text, _ in TEXTS]).to_disk(tmp_path / "plain.spacy")
    quantize(
        tmp_path / "pipeline",
        tmp_path / "other",
        corpus=tmp_path / "plain.spacy",
        precision="fp32",
        log=lines.append,
    )
    assert any("no pairs of texts for pair" in line for line in lines)


def test_labelled_pairs(nlp: Language, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    lines: list[dict[str, Any]] = [
        {"text": "A man plays.", "other": "Nobody plays.", "label": "contradiction"},
        {"text": "A man plays.", "other": "", "cats": {"related": 0.5}},
        {"text": "", "other": "A man\u2028plays.", "label": None},
        {"text": "A man plays.", "other": "Somebody plays.", "label": "entailment"},
    ]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text(text, encoding="utf-8-sig")
    found = list(LabelledPairs(path)(nlp))
    assert [example.predicted._.other for example in found] == [line["other"] for line in lines]
    assert found[0].reference.cats == {"contradiction": 1.0, "entailment": 0.0}
    assert found[1].reference.cats == {"related": 0.5}
    assert not found[2].reference.cats
    assert not found[0].predicted.cats
    assert len(list(LabelledPairs(path, limit=2)(nlp))) == 2
    for bad in (
        '{"text": "a"}',
        '{"text": "a", "other": 3}',
        "[1]",
        "{",
        '{"text": "a", "other": "b", "cats": {"x": "y"}}',
    ):
        path.write_text(bad)
        with pytest.raises(CorpusError, match="line 1"):
            list(LabelledPairs(path)(nlp))
    with pytest.raises(CorpusError, match="cannot be read"):
        list(LabelledPairs(tmp_path / "none.jsonl")(nlp))
    path.write_bytes(b'{"text": "\xe9", "other": "b"}')
    with pytest.raises(CorpusError, match="cannot be read"):
        list(LabelledPairs(path)(nlp))
    with pytest.raises(CorpusError, match="set the path"):
        list(LabelledPairs(None)(nlp))


def test_errors(bert_dir: Path) -> None:
    nlp = build(bert_dir)
    pipe: Any = nlp.get_pipe("pair")
    with pytest.raises(ConfigError, match="is no pair of texts"):
        pipe.classify([("a", "b", "c")])
    for wrong in (("a", None), "ab", 1):
        with pytest.raises(ConfigError, match="is no pair of texts"):
            pipe.classify([wrong])
    with pytest.raises(ConfigError, match="has outputs for the labels"):
        pipe.add_label("new")
    assert pipe.add_label("neutral") == 0
    with pytest.raises(ConfigError, match="expected one of classes, probability, number"):
        DistilPair(nlp.vocab, pipe.model, output="score")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected an identifier"):
        nlp.add_pipe("distil_pair", name="x", config={"other": "other text"})
    Doc.set_extension("taken", default=None, force=True)
    with pytest.raises(ConfigError, match=r"doc._.taken is an extension of other code"):
        nlp.add_pipe("distil_pair", name="x", config={"other": "taken"})
    tok2vec: Any = pipe.model.get_ref("tok2vec")
    with pytest.raises(ConfigError, match="expected null or one of"):
        PairHead(tok2vec, hidden="no")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected one of mean, max"):
        PairHead(tok2vec, join="no")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Set pairs = true"):
        PairHead(Listener())
    with pytest.raises(ConfigError, match="docs = true and pairs = true"):
        Listener(docs=True, pairs=True)
    with pytest.raises(ConfigError, match="cannot use the tok2vec"):
        PairHead(Linear(4, 4))
    alone = spacy.blank("en")
    lonely: Any = alone.add_pipe("distil_pair")
    with pytest.raises(ConfigError, match="no distil_transformer of that name comes before it"):
        lonely.classify([("a", "b")])
    with pytest.raises(ConfigError, match="has 0 labels"):
        alone.initialize(lambda: [Example(alone.make_doc("a"), alone.make_doc("a"))])


def test_examples_without_a_pair_teach_nothing(bert_dir: Path) -> None:
    nlp = build(bert_dir)
    batch = [pair_example(nlp, "a", "b", None), Example(nlp.make_doc("a"), nlp.make_doc("a"))]
    before = encoder_of(nlp).to_bytes()
    losses: dict[str, float] = {}
    nlp.update(batch, sgd=adam(0.01), losses=losses)
    assert losses["pair"] == 0
    assert encoder_of(nlp).to_bytes() == before
    assert "pair_acc" not in nlp.evaluate(batch)
