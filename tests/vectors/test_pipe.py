"""The component: hooks, serialization, training, and other pipes beside it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
import transformers
from confection import ConfigValidationError
from scipy.special import log_softmax
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example

from spacy_distil.component.shim import get_encoder
from spacy_distil.errors import ConfigError
from spacy_distil.vectors.pairs import relate
from tests.util import LISTENER, SENTENCES, adam
from tests.vectors.conftest import TEXTS, build


@pytest.mark.parametrize("doc_pooling", ["mean", "first", "max"])
def test_vectors_are_those_of_transformers(doc_pooling: str, bert_dir: Path) -> None:
    nlp = build(bert_dir, doc_pooling=doc_pooling)
    model = transformers.AutoModel.from_pretrained(bert_dir).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert_dir)
    for text, doc in zip(TEXTS, nlp.pipe(TEXTS), strict=True):
        if not text:
            assert not doc.vector.any()
            assert not doc.has_vector
            continue
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
        pools = {"first": states[0], "mean": states.mean(axis=0), "max": states.max(axis=0)}
        expected = pools[doc_pooling]
        np.testing.assert_allclose(doc.vector, expected / np.linalg.norm(expected), atol=1e-5)
        assert doc.vector_norm == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("doc_pooling", ["mean", "first", "max"])
@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "last"])
def test_every_pooling_of_docs_beside_every_pooling_of_tokens(
    pooling: str, doc_pooling: str, bert_dir: Path
) -> None:
    """The vectors of one do not depend on the other, and gradients flow back to both."""
    nlp = build(bert_dir, pooling=pooling, doc_pooling=doc_pooling, window=24, overlap=6)
    tokens = build(bert_dir, pooling=pooling, window=24, overlap=6)
    docs = build(bert_dir, doc_pooling=doc_pooling, window=24, overlap=6)
    for own, one, other in zip(*(each.pipe(TEXTS) for each in (nlp, tokens, docs)), strict=True):
        np.testing.assert_allclose(own.tensor, one.tensor, atol=1e-5)
        np.testing.assert_allclose(own.vector, other.vector, atol=1e-5)
    encoder = get_encoder(nlp.get_pipe("transformer").model)  # type: ignore[attr-defined]
    texts = [nlp.make_doc(text) for text in TEXTS[:4]]
    encoded = encoder._encode(texts, with_docs=True)
    ops, generator = encoder_ops(nlp), np.random.default_rng(0)
    rows = generator.normal(size=(encoded.pooling.n_rows, 3)).astype("f")
    vectors, backprop = encoded.pooling.forward(ops, rows)
    weights = generator.normal(size=vectors.shape).astype("f")
    d_rows = backprop(weights)
    for place in [*zip(generator.integers(0, len(rows), 20).tolist(), [0, 1, 2] * 7, strict=False)]:
        moved = rows.copy()
        moved[place] += 1e-3
        other, _ = encoded.pooling.forward(ops, moved)
        difference = ((other - vectors) * weights).sum() / 1e-3
        assert difference == pytest.approx(d_rows[place], abs=2e-2)


def test_windows_of_a_long_doc(bert_dir: Path) -> None:
    """Each piece counts once, whatever windows it is in, and special pieces as in one window."""
    nlp = build(bert_dir, window=16, overlap=4)
    doc = nlp(" ".join(SENTENCES))
    encoder = get_encoder(nlp.get_pipe("transformer").model)  # type: ignore[attr-defined]
    _, encoded, states = encoder.predict_pieces([doc], encoder_ops(nlp))
    assert len(encoded.windows) > 3
    rows: dict[Any, list[np.ndarray]] = {}
    bounds = np.cumsum([0, *(len(window) + 2 for window in encoded.windows)])
    pieces = iter(encoded.row_pieces.tolist())
    for begin, end in pairwise(bounds):
        rows.setdefault("begin", []).append(states[begin])
        for row in states[begin + 1 : end - 1]:
            rows.setdefault(next(pieces), []).append(row)
        rows.setdefault("end", []).append(states[end - 1])
    expected = np.mean([np.mean(own, axis=0) for own in rows.values()], axis=0)
    np.testing.assert_allclose(doc.vector, expected / np.linalg.norm(expected), atol=1e-5)


def encoder_ops(nlp: Language) -> Any:
    return nlp.get_pipe("transformer").model.ops  # type: ignore[attr-defined]


def test_tokens_and_other_pipes_are_untouched(bert_dir: Path) -> None:
    nlp = build(bert_dir, tagger=True)
    plain = build(
        bert_dir,
        doc_pooling=None,
        tagger=True,
        model={
            "@architectures": "spacy-distil.VectorsHead.v1",
            "pooling": "tokens",
            "tok2vec": {**LISTENER, "docs": False},
        },
    )
    plain.get_pipe("tagger").model.from_bytes(nlp.get_pipe("tagger").model.to_bytes())  # type: ignore[attr-defined]
    for one, other in zip(nlp.pipe(TEXTS), plain.pipe(TEXTS), strict=True):
        np.testing.assert_allclose(one.tensor, other.tensor, atol=1e-6)
        assert [token.tag for token in one] == [token.tag for token in other]
        if len(one):
            mean = other.tensor.mean(axis=0)
            expected = mean / max(float(np.linalg.norm(mean)), 1e-12)
            np.testing.assert_allclose(other.vector, expected, atol=1e-5)
            np.testing.assert_array_equal(one[0].vector, one.tensor[0])


def test_similarity_of_docs_and_spans(nlp: Language) -> None:
    one, other = nlp.pipe(SENTENCES[:2])
    assert one.similarity(other) == pytest.approx(float(one.vector @ other.vector))
    assert one.similarity(one) == pytest.approx(1)
    span = one[1:4]
    mean = one.tensor[1:4].mean(axis=0)
    np.testing.assert_allclose(span.vector, mean / np.linalg.norm(mean), atol=1e-6)
    assert span.similarity(one) == pytest.approx(float(span.vector @ one.vector), abs=1e-6)
    pipe: Any = nlp.get_pipe("vectors")
    assert pipe.encode_spans([]).shape[0] == 0
    assert nlp("").similarity(one) == 0
    assert len(nlp.vocab.vectors) == 0


def test_vectors_survive_serialization(nlp: Language, tmp_path: Path) -> None:
    docs = list(nlp.pipe(TEXTS))
    pipe: Any = nlp.get_pipe("vectors")
    with pytest.warns(UserWarning, match="W109"):  # spaCy says that hooks are lost
        data = docs[0].to_bytes()
    (again,) = pipe.restore([Doc(nlp.vocab).from_bytes(data)])
    np.testing.assert_array_equal(again.vector, docs[0].vector)
    DocBin(docs=docs, store_user_data=True).to_disk(tmp_path / "docs.spacy")
    loaded = DocBin().from_disk(tmp_path / "docs.spacy").get_docs(nlp.vocab)
    for one, other in zip(docs, pipe.restore(loaded), strict=True):
        np.testing.assert_array_equal(one.vector, other.vector)
    with pytest.raises(ConfigError, match="has no vector of 'vectors'"):
        pipe.restore([nlp.make_doc("Ann")])
    nlp.to_disk(tmp_path / "nlp")
    for one, other in zip(docs, spacy.load(tmp_path / "nlp").pipe(TEXTS), strict=True):
        np.testing.assert_allclose(one.vector, other.vector, atol=1e-6)
    other = spacy.blank("en").from_config(nlp.config).from_bytes(nlp.to_bytes())
    np.testing.assert_allclose(other(SENTENCES[0]).vector, docs[0].vector, atol=1e-6)


@pytest.mark.parametrize("name", ["vectors", "tagger"])
def test_replaced_listeners(name: str, bert_dir: Path, tmp_path: Path) -> None:
    """An encoder inside a pipe gives it what the listener gave: docs to one, tokens to others."""
    nlp = build(bert_dir, tagger=True)
    before = list(nlp.pipe(TEXTS))
    nlp.replace_listeners("transformer", name, ["model.tok2vec"])
    nlp.to_disk(tmp_path / "new")
    for new in (nlp, spacy.load(tmp_path / "new")):
        for one, other in zip(before, new.pipe(TEXTS), strict=True):
            np.testing.assert_allclose(one.vector, other.vector, atol=1e-6)
            assert [token.tag for token in one] == [token.tag for token in other]


def test_the_encoder_says_what_is_missing(bert_dir: Path) -> None:
    with pytest.raises(ConfigError, match='Set doc_pooling = "mean" in'):
        build(bert_dir, doc_pooling=None)
    with pytest.raises(ConfigValidationError, match="'all' is not"):
        build(bert_dir, doc_pooling="all")
    nlp = build(bert_dir)
    with nlp.select_pipes(disable="transformer"), pytest.raises(ConfigError, match="encoder"):
        nlp("Ann visited Rome")


def related(nlp: Language) -> list[Example]:
    examples = []
    for number, text in enumerate((*SENTENCES, *SENTENCES[::-1])):
        doc = nlp.make_doc(text if number < len(SENTENCES) else text.lower())
        group = str(min(number, 2 * len(SENTENCES) - 1 - number))
        reference = nlp.make_doc(doc.text)
        for token in reference:
            token.tag_ = "ABC"[len(token) % 3]
        examples.append(relate(Example(doc, reference), group))
    return examples


def test_gradients_reach_the_encoder_from_docs_and_tokens(bert_dir: Path) -> None:
    """Against differences of the sum of both losses, with a tagger and vectors on one encoder."""
    nlp = build(bert_dir, tagger=True, dropout=0.0, attention_dropout=0.0)
    examples = related(nlp)[:4] + related(nlp)[-4:]
    encoder_pipe, tagger, pipe = (pipe for _, pipe in nlp.pipeline)
    encoder = get_encoder(encoder_pipe.model)  # type: ignore[attr-defined]
    parameters = dict(encoder.engine.model.named_parameters())  # type: ignore[attr-defined]
    weight = next(own for name, own in parameters.items() if name.endswith("output.dense.weight"))

    def fresh() -> list[Example]:
        return [Example(nlp.make_doc(each.text), each.reference) for each in examples]

    def losses() -> float:
        """Without any gradient: the losses that the pipes minimize."""
        own = fresh()
        docs = [encoder_pipe(each.predicted) for each in own]
        vectors: Any = pipe.model.predict(docs)  # type: ignore[attr-defined]
        scores = tagger.model.predict(docs)  # type: ignore[attr-defined]
        cross = 0.0
        for each, logits in zip(own, scores, strict=True):
            gold = each.get_aligned("TAG", as_string=True)
            rows = [tagger.labels.index(tag) for tag in gold]  # type: ignore[attr-defined]
            cross -= float(log_softmax(logits, axis=1)[range(len(rows)), rows].sum())
        return float(pipe.get_loss(own, vectors)[0]) + cross  # type: ignore[attr-defined]

    batch = fresh()
    for own in (encoder_pipe, tagger, pipe):
        own.update(batch)  # type: ignore[attr-defined]
    gradient = weight.grad.numpy().copy()
    for i, j in ((0, 0), (3, 5), (10, 7)):
        values = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                weight[i, j] += step
            values.append(losses())
            with torch.no_grad():
                weight[i, j] -= step
        numeric = (values[0] - values[1]) / 2e-2
        assert gradient[i, j] == pytest.approx(numeric, abs=2e-2, rel=5e-2)


def test_pairs_are_learned(bert_dir: Path) -> None:
    nlp = build(bert_dir, tagger=True)
    examples = related(nlp)
    sgd = adam(1e-3)
    before = nlp.evaluate(related(nlp))["vectors_mrr"]
    losses = []
    for _ in range(30):
        own: dict[str, float] = {}
        fresh = [Example(nlp.make_doc(each.text), each.reference) for each in examples]
        nlp.update(fresh, sgd=sgd, losses=own)
        losses.append(own["vectors"])
    assert losses[-1] < 0.5 * losses[0]
    scores = nlp.evaluate(related(nlp))
    assert scores["vectors_mrr"] >= before
    assert scores["vectors_mrr"] > 0.9
    assert scores["tag_acc"] > 0.6, "the tagger learns beside it"


def test_dims_and_scores_are_learned(bert_dir: Path) -> None:
    nlp = build(bert_dir)
    nlp.remove_pipe("vectors")
    pipe: Any = nlp.add_pipe("distil_vectors", name="vectors", config={"dims": [4, 8]})
    pipe.model.initialize(X=[nlp.make_doc("a")])
    assert pipe.dims == [4, 8]
    pairs = []
    for number, (one, other, score) in enumerate(
        [(0, 1, -0.5), (1, 2, 0.9), (2, 3, 0.0), (3, 4, 0.6)]
    ):
        for i in (one, other):
            pairs.append((SENTENCES[i], str(number), score))
    sgd = adam(1e-3)

    def make() -> list[Example]:
        return [
            relate(Example(nlp.make_doc(text), nlp.make_doc(text)), group, score=score)
            for text, group, score in pairs
        ]

    for _ in range(80):
        nlp.update(make(), sgd=sgd)
    docs = list(nlp.pipe(SENTENCES))
    for n in (4, 8, docs[0].vector.shape[0]):
        for one, other, score in [(0, 1, -0.5), (1, 2, 0.9), (2, 3, 0.0), (3, 4, 0.6)]:
            left, right = docs[one].vector[:n], docs[other].vector[:n]
            cosine = left @ right / np.linalg.norm(left) / np.linalg.norm(right)
            assert cosine == pytest.approx(score, abs=0.25)
    assert nlp.evaluate(make())["vectors_spearman"] == pytest.approx(1)


def test_mistakes(bert_dir: Path) -> None:
    nlp = build(bert_dir)
    head = {"@architectures": "spacy-distil.VectorsHead.v1", "tok2vec": LISTENER}
    for config, message in (
        ({"temperature": 0}, "temperature = 0"),
        ({"dims": [0]}, r"dims = \[0\]"),
        ({"model": {**head, "pooling": "max"}}, "'max' is not"),
        ({"model": {**head, "dense": [0]}}, r"dense = \[0\]"),
        (
            {"model": {**head, "tok2vec": {**LISTENER, "docs": False}}},
            "makes vectors of tokens alone",
        ),
    ):
        with pytest.raises((ConfigError, ConfigValidationError), match=message):
            nlp.add_pipe("distil_vectors", name="other", config=config)
