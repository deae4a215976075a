"""The pooling "cls", and the head that classifies documents behind it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
from spacy.tokens import Doc
from thinc.api import Model, NumpyOps

from spacy_distil.component.textcat import ACTIVATIONS, TextCatHead
from spacy_distil.errors import ConfigError
from tests.util import LISTENER, adam, encoder_of, make_examples, torch_model_of, write_encoder

OPS = NumpyOps()
TEXTS = (
    "Ann visited Rome in the spring of 2021.",
    "",
    " \n\t",
    "😀👩‍👩‍👧 e\u0301a\u0308 東京 と 北京",
    "\x00\x07",
    "\n\nRome",
)


def text_classifier(
    encoder: Path, *, exclusive: bool = True, hidden: str | None = None, **settings: Any
) -> Any:
    nlp = spacy.blank("en")
    model = {
        "@architectures": "spacy-distil.DistilTransformer.v1",
        "name": str(encoder),
        "pooling": "cls",
        "device": "cpu",
        **settings,
    }
    nlp.add_pipe("distil_transformer", name="transformer", config={"model": model})
    head = {
        "@architectures": "spacy-distil.TextCatHead.v1",
        "exclusive_classes": exclusive,
        "hidden": hidden,
        "tok2vec": LISTENER,
    }
    factory = "textcat" if exclusive else "textcat_multilabel"
    nlp.add_pipe(factory, name="textcat", config={"model": head})
    return nlp


def first_states(nlp: Any, doc: Doc, window: int) -> list[torch.Tensor]:
    """The last hidden state of the first piece of each window, by the torch module itself."""
    encoder = encoder_of(nlp)
    tokenizer = encoder.loaded.tokenizer
    encoded = encoder._encode([doc])
    states = []
    for ids in encoded.windows:
        assert len(ids) + tokenizer.n_special <= window
        pieces = torch.tensor([[*tokenizer.prefix, *ids.tolist(), *tokenizer.suffix]])
        output = torch_model_of(nlp)(input_ids=pieces, attention_mask=torch.ones_like(pieces))
        states.append(output.last_hidden_state[0, 0])
    return states


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "deberta-v2"])
def test_tokens_have_the_vector_of_their_windows_first_piece(family: str, tmp_path: Path) -> None:
    nlp = text_classifier(write_encoder(tmp_path / "encoder", family), overlap=0)
    nlp.initialize(lambda: make_examples(nlp))
    for doc in map(nlp.make_doc, TEXTS):
        (vectors,) = encoder_of(nlp).predict_docs([doc], OPS)
        assert vectors.shape == (len(doc), encoder_of(nlp).width)
        for vector in vectors:
            (state,) = first_states(nlp, doc, 72)
            np.testing.assert_allclose(vector, state.detach().numpy(), atol=1e-5)
    # All at once, and beside the pieces of `doc._.trf_data`.
    docs = list(map(nlp.make_doc, TEXTS))
    alone = [encoder_of(nlp).predict_docs([doc], OPS)[0] for doc in docs]
    for others in (
        encoder_of(nlp).predict_docs(docs, OPS),
        encoder_of(nlp).predict_pieces(docs, OPS)[0],
    ):
        for one, other in zip(alone, others, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_gradient_goes_to_the_first_pieces(tmp_path: Path) -> None:
    """As autograd finds it, for a doc of several windows."""
    nlp = text_classifier(write_encoder(tmp_path / "encoder", "bert"), window=16, overlap=0)
    nlp.initialize(lambda: make_examples(nlp))
    doc = nlp.make_doc(" ".join(["Ann visited Rome ."] * 8))
    module, encoder = torch_model_of(nlp), encoder_of(nlp)
    tokens, backprop = encoder.begin_update_docs([doc], OPS)
    d_tokens: Any = np.random.default_rng(0).normal(size=tokens[0].shape).astype("f")
    module.zero_grad()
    backprop(d_tokens)
    own = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    states = first_states(nlp, doc, 16)
    assert len(states) > 2
    encoded = encoder._encode([doc])
    starts = np.cumsum([0, *(len(ids) + 2 for ids in encoded.windows)])
    owner = np.searchsorted(starts, encoded.pooling.columns)
    assert np.array_equal(starts[owner], encoded.pooling.columns)
    total = sum(states[w] @ torch.from_numpy(d) for w, d in zip(owner, d_tokens, strict=True))
    total.backward()
    assert own
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(own[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_a_tokenizer_without_a_first_piece_is_refused(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder", "bert")
    from tokenizers import Tokenizer, processors

    path = encoder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "[SEP]"], special_tokens=[("[SEP]", tokenizer.token_to_id("[SEP]"))]
    )
    tokenizer.save(str(path))
    nlp = text_classifier(encoder)
    with pytest.raises(ConfigError, match=r"pooling = 'cls'.*'mean'"):
        nlp.initialize(lambda: make_examples(nlp))


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("hidden", [None, *ACTIVATIONS])
def test_the_head_against_torch(hidden: Any, exclusive: bool) -> None:
    """Outputs and gradients of random numbers, for docs of several lengths."""
    rng = np.random.default_rng(0)
    width, n_classes = 6, 3
    vectors = [rng.normal(size=(n, width)).astype("f") for n in (4, 1, 7)]
    d_inputs: list[Any] = []

    def forward(model: Model, docs: Any, is_train: bool) -> Any:
        return [v.copy() for v in vectors], lambda d_vectors: d_inputs.extend(d_vectors) or []

    head = TextCatHead(
        Model("vectors", forward, dims={"nO": None}), exclusive_classes=exclusive, hidden=hidden
    )
    nlp = spacy.blank("en")
    docs = [Doc(nlp.vocab, words=["a"] * len(v)) for v in vectors]
    head.initialize(X=docs, Y=OPS.alloc2f(3, n_classes))
    nodes = [node for node in head.get_ref("pooled").walk() if node.has_param("W")]
    nodes.append(head.get_ref("output_layer"))
    layers = []
    for node in nodes:
        for name in ("W", "b"):
            node.set_param(name, rng.normal(size=node.get_param(name).shape).astype("f"))
        layers.append([torch.tensor(node.get_param(name), requires_grad=True) for name in "Wb"])
    inputs = [torch.tensor(v, requires_grad=True) for v in vectors]
    rows = torch.stack([each.mean(0) for each in inputs])
    if hidden is not None:
        rows = getattr(torch.nn.functional, hidden)(rows @ layers[0][0].T + layers[0][1])
    logits = rows @ layers[-1][0].T + layers[-1][1]
    probs = logits.softmax(-1) if exclusive else logits.sigmoid()
    own, backprop = head.begin_update(docs)
    np.testing.assert_allclose(own, probs.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(head.predict(docs), own, atol=1e-6)
    # The softmax takes the gradient of logits, the logistic function the gradient of probabilities.
    d_out = rng.normal(size=own.shape).astype("f")
    (logits if exclusive else probs).backward(torch.tensor(d_out))
    backprop(d_out)
    for one, other in zip(d_inputs, inputs, strict=True):
        assert other.grad is not None
        np.testing.assert_allclose(one, other.grad.numpy(), atol=1e-4)
    for node, weights in zip(nodes, layers, strict=True):
        for name, weight in zip("Wb", weights, strict=True):
            assert weight.grad is not None
            np.testing.assert_allclose(node.get_grad(name), weight.grad.numpy(), atol=1e-4)


@pytest.mark.parametrize("exclusive", [True, False])
def test_it_learns_and_is_saved(exclusive: bool, tmp_path: Path) -> None:
    nlp = text_classifier(
        write_encoder(tmp_path / "encoder", "bert"), exclusive=exclusive, hidden="tanh"
    )
    nlp.initialize(lambda: make_examples(nlp))
    for _ in range(25):
        nlp.update(make_examples(nlp), sgd=adam(3e-3))
    assert nlp.evaluate(make_examples(nlp, start=100))["cats_macro_auc"] == 1
    nlp.to_disk(tmp_path / "saved")
    loaded = spacy.load(tmp_path / "saved")
    for text in TEXTS:
        assert loaded(text).cats == nlp(text).cats == pickle.loads(pickle.dumps(nlp))(text).cats


@pytest.mark.parametrize("exclusive", [True, False])
def test_labels_can_be_added(exclusive: bool, tmp_path: Path) -> None:
    nlp = text_classifier(
        write_encoder(tmp_path / "encoder", "bert"), exclusive=exclusive, hidden="gelu"
    )
    nlp.initialize(lambda: make_examples(nlp))
    copy = pickle.loads(pickle.dumps(nlp))
    before = nlp("Ann likes pizza").cats
    copy.get_pipe("textcat").add_label("sport")
    after = copy("Ann likes pizza").cats
    assert after == {**before, "sport": 0.0 if exclusive else 0.5}
    assert nlp("Ann likes pizza").cats == before
    copy.to_disk(tmp_path / "saved")
    assert spacy.load(tmp_path / "saved")("Ann likes pizza").cats == after


def test_an_unknown_activation_is_refused() -> None:
    tok2vec: Any = Model("vectors", lambda model, docs, is_train: (docs, None))
    with pytest.raises(ConfigError, match=r"hidden = 'swish'.*tanh, gelu, relu"):
        TextCatHead(tok2vec, exclusive_classes=True, hidden="swish")  # type: ignore[arg-type]
