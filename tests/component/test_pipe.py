from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.tokens import Doc

from spacy_distil.component.pipe import DistilTransformerPipe
from spacy_distil.errors import ConfigError, WeightsError
from tests.util import (
    LISTENER,
    SENTENCES,
    STOCK_LISTENER,
    WIDTH,
    add_heads,
    encoder_of,
    make_nlp,
    random_text,
    registry,
    write_encoder,
)

ODD = ["", " ", "   \n\n ", "\x00", "👩‍👩‍👧 🇳🇴 ok", "e\u0301 מרחב", "a", *SENTENCES]


# Vectors


def test_vectors_are_those_of_spacy_transformers(teacher_dir: Path) -> None:
    """Compare with its listener with mean pooling, on texts that fit one of its windows."""
    pytest.importorskip("spacy_transformers", reason="the extra 'interop' is not installed")
    theirs: Any = spacy.blank("en")
    theirs.add_pipe(
        "transformer",
        config={
            "model": {
                "@architectures": "spacy-transformers.TransformerModel.v3",
                "name": str(teacher_dir),
                "get_spans": {
                    "@span_getters": "spacy-transformers.strided_spans.v1",
                    "window": 128,
                    "stride": 96,
                },
            }
        },
    )
    listener = registry.architectures.get("spacy-transformers.TransformerListener.v1")(
        pooling=registry.layers.get("reduce_mean.v1")()
    )
    theirs.get_pipe("transformer").model.initialize()
    ours = make_nlp(teacher_dir)
    rng = random.Random(0)
    texts = [*SENTENCES, *(random_text(rng, 40) for _ in range(5)), "don't  stop:\n\nUNBELIEVABLE"]
    docs = list(theirs.pipe(texts))
    listener.layers[0].set_dim("nO", 384)
    expected = listener.predict(docs)
    for doc, theirs_of_doc in zip(ours.pipe(texts), expected, strict=True):
        np.testing.assert_allclose(doc.tensor, theirs_of_doc, rtol=0, atol=1e-5)


def test_a_doc_does_not_depend_on_its_batch(encoder_dir: Path) -> None:
    check_docs_alone(encoder_dir, "mean", 400)


@pytest.mark.parametrize(("pooling", "max_batch_pieces"), [("mean", 1), ("first", None)])
def test_a_doc_does_not_depend_on_the_size_of_its_batch(
    bert_dir: Path, pooling: str, max_batch_pieces: int | None
) -> None:
    check_docs_alone(bert_dir, pooling, max_batch_pieces)


def check_docs_alone(encoder_dir: Path, pooling: str, max_batch_pieces: int | None) -> None:
    nlp = make_nlp(encoder_dir, max_batch_pieces=max_batch_pieces, pooling=pooling)
    alone = make_nlp(encoder_dir, pooling=pooling)
    rng = random.Random(1)
    texts = [*ODD, *(random_text(rng, n) for n in (1, 30, 70))]
    for doc, text in zip(nlp.pipe(texts, batch_size=9), texts, strict=True):
        np.testing.assert_allclose(doc.tensor, alone(text).tensor, rtol=0, atol=1e-5)


def test_first_pooling_takes_the_first_piece(bert_dir: Path) -> None:
    first, mean = make_nlp(bert_dir, pooling="first"), make_nlp(bert_dir)
    text = "We unbelievable"
    of_first, of_mean = first(text).tensor, mean(text).tensor
    np.testing.assert_allclose(of_first[0], of_mean[0], atol=1e-6)  # "we" is one piece
    assert np.abs(of_first[1] - of_mean[1]).max() > 0.1


def test_each_doc_has_its_own_copy(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir)
    for doc in nlp.pipe(ODD):
        assert doc.tensor.shape == (len(doc), WIDTH)
        assert doc.tensor.dtype == np.float32
        assert doc.tensor.base is None or doc.tensor.base.nbytes == doc.tensor.nbytes
        assert doc.tensor.flags.owndata or doc.tensor.base.flags.owndata


def test_doc_and_span_vectors_and_similarity(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir)
    doc, other = nlp(SENTENCES[0]), nlp(SENTENCES[1])
    np.testing.assert_allclose(doc.vector, doc.tensor.mean(0), atol=1e-6)
    np.testing.assert_allclose(doc[2:5].vector, doc.tensor[2:5].mean(0), atol=1e-6)
    np.testing.assert_array_equal(doc[3].vector, doc.tensor[3])
    cosine = doc.vector @ other.vector / np.linalg.norm(doc.vector) / np.linalg.norm(other.vector)
    with pytest.warns(UserWarning, match="W007"):
        assert doc.similarity(other) == pytest.approx(cosine, abs=1e-5)
    assert nlp("").vector.shape in [(0,), (WIDTH,)]


def test_tokens_without_pieces_have_zero_vectors(bert_dir: Path) -> None:
    doc = make_nlp(bert_dir)("Ann  \n visited \x00 Rome")
    pieceless = [not token.text.strip("\x00 \n") for token in doc]
    assert any(pieceless)
    for token, without in zip(doc, pieceless, strict=True):
        assert doc.tensor[token.i].any() != without


def test_pretokenized_docs(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir)
    words = ["un", "believ", "able", "pizza"]
    cut = nlp(Doc(nlp.vocab, words=words, spaces=[False, False, True, False]))
    whole = nlp("unbelievable pizza")
    assert all(vector.any() for vector in cut.tensor)
    np.testing.assert_allclose(cut.tensor[3], whole.tensor[1], atol=1e-5)


# Long docs


def test_long_docs_are_encoded_in_windows(bert_dir: Path) -> None:
    """Each part of a long doc has the same vectors as a doc of this part alone."""
    nlp = make_nlp(bert_dir, window=12, overlap=0)
    words = ["pizza", "we", "like", "oslo", "rome"] * 2  # one piece each
    assert {len(p.ids) for p in encoder_of(nlp).loaded.tokenizer(words)} <= {1, 2}
    parts = [["we"] * 10, ["like", "the"] * 5, ["of"] * 7]
    doc = nlp(Doc(nlp.vocab, words=[word for part in parts for word in part]))
    expected = [nlp(Doc(nlp.vocab, words=part)).tensor for part in parts]
    np.testing.assert_allclose(doc.tensor, np.concatenate(expected), rtol=0, atol=1e-5)


def test_overlapping_windows_are_averaged(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, window=12, overlap=4)
    words = ["we", "like", "the", "of"] * 4
    doc = nlp(Doc(nlp.vocab, words=words))  # 16 pieces: windows 0-10 and 6-16
    left = nlp(Doc(nlp.vocab, words=words[:10])).tensor
    right = nlp(Doc(nlp.vocab, words=words[6:])).tensor
    mean = np.concatenate([left[:6], (left[6:] + right[:4]) / 2, right[4:]])
    np.testing.assert_allclose(doc.tensor, mean, rtol=0, atol=1e-5)


def test_a_very_long_doc(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, overlap=8)
    doc = nlp((" ".join(SENTENCES) + " ") * (300_000 // len(" ".join(SENTENCES)) + 1))
    assert len(doc.text) >= 300_000
    assert doc.tensor.shape == (len(doc), WIDTH)
    assert np.isfinite(doc.tensor).all()
    assert doc.tensor.any(axis=1).all()


def test_a_token_of_5000_pieces(encoder_dirs: dict[str, Path]) -> None:
    nlp = make_nlp(encoder_dirs["roberta"])
    doc = nlp(Doc(nlp.vocab, words=["We", "x" * 5000, "Oslo"]))
    assert len(encoder_of(nlp).loaded.tokenizer(["x" * 5000])[0].ids) == 5000
    assert np.isfinite(doc.tensor).all()
    assert doc.tensor.any(axis=1).all()


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 73}, "window = 73: this encoder takes at most 72 pieces"),
        ({"window": 7}, "window = 7: expected at least 8"),
        ({"overlap": 36}, "overlap = 36: .* at most half of the window of 72 pieces without its 2"),
        ({"window": 16, "overlap": 8}, "overlap = 8: .* window of 16 pieces"),
        ({"overlap": -1}, "overlap = -1: expected at least 0"),
        ({"max_batch_pieces": 0}, "max_batch_pieces = 0: expected at least 1"),
        ({"learn_rate_scale": -0.1}, "learn_rate_scale = -0.1: expected 0 or more"),
        ({"layer_decay": 0.0}, "layer_decay = 0.0: expected above 0, at most 1"),
        ({"layer_decay": 1.5}, "layer_decay = 1.5: expected above 0, at most 1"),
        ({"attention_dropout": 1.0}, "attention_dropout = 1.0: expected null, or 0 to below 1"),
        ({"device": "tpu"}, "device = 'tpu' cannot be used"),
    ],
)
def test_a_bad_setting_is_named(bert_dir: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_nlp(bert_dir, **{"overlap": 0, **settings})


def test_a_bad_pooling_is_named(bert_dir: Path) -> None:
    model = registry.architectures.get("spacy-distil.DistilTransformer.v1")
    with pytest.raises(ConfigError, match="pooling = 'middle': expected one of mean, first"):
        model(str(bert_dir), pooling="middle")
    with pytest.raises(ConfigError, match="pieces_from = 'words': expected one of text, tokens"):
        model(str(bert_dir), pieces_from="words")


def test_the_largest_window_and_overlap_work(encoder_dir: Path) -> None:
    nlp = make_nlp(encoder_dir, window=72, overlap=35)
    assert nlp("Zürich " * 100).tensor.any(axis=1).all()
    with pytest.raises(ConfigError, match="window = 73: this encoder takes at most 72 pieces"):
        make_nlp(encoder_dir, window=73)


def test_it_speaks_up_before_it_has_weights(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, initialize=False)
    with pytest.raises(
        WeightsError, match=r"no weights yet. Call nlp.initialize\(\).*name = .*bert"
    ):
        nlp("Ann")


def test_a_tokenizer_of_another_encoder_is_refused(
    encoder_dirs: dict[str, Path], tmp_path: Path
) -> None:
    write_encoder(tmp_path, "bert")
    for path in encoder_dirs["roberta"].glob("*token*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(WeightsError, match=r"pieces up to number 414, .* embeddings for 276 only"):
        make_nlp(tmp_path)


def test_a_piece_beyond_the_embeddings_is_refused(bert_dir: Path, tmp_path: Path) -> None:
    """There are no more pieces than embeddings."""
    directory = shutil.copytree(bert_dir, tmp_path / "encoder")
    path = directory / "tokenizer.json"
    saved = json.loads(path.read_text(encoding="utf8"))
    piece = next(piece for piece in saved["model"]["vocab"] if piece.isalpha())
    saved["model"]["vocab"][piece] = 276
    path.write_text(json.dumps(saved), encoding="utf8")
    with pytest.raises(WeightsError, match=r"pieces up to number 276, .* embeddings for 276 only"):
        make_nlp(directory)


def test_the_model_must_be_ours() -> None:
    model = registry.architectures.get("spacy.HashEmbedCNN.v2")(
        width=8, depth=1, embed_size=10, window_size=1, maxout_pieces=2,
        subword_features=True, pretrained_vectors=None,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"must be spacy-distil\.DistilTransformer\.v1"):
        DistilTransformerPipe(spacy.blank("en").vocab, model)


# Listeners


@pytest.mark.parametrize("listener", [LISTENER, STOCK_LISTENER], ids=["ours", "stock"])
def test_both_listeners_get_the_vectors(bert_dir: Path, listener: dict[str, Any]) -> None:
    nlp = make_nlp(bert_dir, ["tagger", "textcat"], listener=listener)
    doc = nlp(SENTENCES[0])
    tagger = nlp.get_pipe("tagger").model
    np.testing.assert_array_equal(tagger.get_ref("tok2vec").predict([doc])[0], doc.tensor)
    assert tagger.get_ref("tok2vec").get_dim("nO") == WIDTH
    assert nlp.get_pipe("transformer").listening_components == ["tagger", "textcat"]


@pytest.mark.parametrize("architecture", ["spacy-distil.Listener.v1", "spacy.Tok2VecListener.v1"])
def test_a_wrong_width_is_named_with_the_right_one(bert_dir: Path, architecture: str) -> None:
    listener = {"@architectures": architecture, "width": 96}
    with pytest.raises(ConfigError, match=r"'tagger' listens for vectors of width 96.*of width 32"):
        make_nlp(bert_dir, ["tagger"], listener=listener)


def test_a_wrong_width_is_named_when_linked_later(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir)
    listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": 96}
    with pytest.raises(ConfigError, match=r"96.*32.*\[components\.tagger\.model\.tok2vec\]"):
        add_heads(nlp, ["tagger"], listener)


def test_a_wrong_width_is_named_at_loading(bert_dir: Path, tmp_path: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"])
    nlp.to_disk(tmp_path)
    with pytest.raises(ConfigError, match=r"'tagger' listens for vectors of width 96.*of width 32"):
        spacy.load(
            tmp_path, config={"components": {"tagger": {"model": {"tok2vec": {"width": 96}}}}}
        )
