"""Docs that are known to be hard, in all families and on both engines."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from spacy.tokens import Doc

from spacy_distil.component.interop import TrfData
from tests.odd_input.conftest import ENGINES, OVERLAP, WINDOW, Pipelines, to_int8
from tests.odd_input.test_properties import annotate, budget_of
from tests.odd_input.texts import EXAMPLES, LITERAL, SPACES, make_docs
from tests.util import FAMILIES, SENTENCES, encoder_of, make_nlp, special_pieces

BOTH = pytest.mark.parametrize("engine", ENGINES)
EACH = pytest.mark.parametrize("family", FAMILIES)
# One of each kind of tokenizer: wordpieces, bytes, bytes with spaces, SentencePiece.
KINDS = ("bert", "roberta", "modernbert", "albert", "xlm-roberta", "deberta-v2")
# The special piece that stands for plain text.
UNK = "unk_token"


@BOTH
@pytest.mark.parametrize("family", KINDS)
def test_very_many_tiny_docs(pipelines: Pipelines, family: str, engine: str) -> None:
    """Each has the same vectors as alone."""
    nlp = pipelines[family, engine]
    texts = ["a", "", "Ann", " ", "東", "we", "\n"]
    alone = [nlp(text).tensor for text in texts]
    found = annotate(nlp, [nlp.make_doc(text) for text in texts * 150], batch_size=1000)
    for i, tensor in enumerate(found):
        expected = alone[i % len(texts)]
        if engine == "int8":
            np.testing.assert_array_equal(tensor, expected)
        else:
            np.testing.assert_allclose(tensor, expected, rtol=0, atol=1e-5)


@EACH
def test_docs_of_spaces_alone(pipelines: Pipelines, family: str) -> None:
    """RoBERTa has pieces for all but plain spaces. The others have none."""
    nlp = pipelines[family, "int8"]
    docs = [nlp.make_doc(space) for space in SPACES]
    words = [space for space in SPACES if space]
    docs.append(Doc(nlp.vocab, words=words, spaces=[False] * len(words)))
    for doc, tensor in zip(docs, annotate(nlp, docs), strict=True):
        expected = [family == "roberta" and bool(token.text.strip(" ")) for token in doc]
        assert tensor.any(axis=1).tolist() == expected


@BOTH
def test_a_batch_of_docs_without_pieces(pipelines: Pipelines, engine: str) -> None:
    nlp = pipelines["bert", engine]
    docs = make_docs(nlp, ["", " ", (("\n", True), ("\u200b", False)), "\x00", ""])
    with budget_of(nlp, 100) as shapes:
        found = annotate(nlp, docs)
    assert shapes == []
    assert [len(tensor) for tensor in found] == [len(doc) for doc in docs]
    assert not any(tensor.any() for tensor in found)


# Long ones


@pytest.mark.slow
@BOTH
def test_a_doc_of_300_000_characters_is_encoded_in_bounded_batches(
    pipelines: Pipelines, engine: str
) -> None:
    """No forward pass is larger than allowed, and every token has a vector."""
    nlp = pipelines["bert", engine]
    # Words of one piece, but for a few paragraphs.
    plain = "we like the of in are they to be is " * 100
    text = (plain + " ".join(SENTENCES) + " ") * 90
    doc = nlp.make_doc(text[:300_000])
    with budget_of(nlp, 512) as shapes:
        (tensor,) = annotate(nlp, [doc])
    assert len(doc.text) == 300_000
    assert max(n * length for n, length in shapes) <= 512
    assert sum(n * length for n, length in shapes) > len(doc)
    assert tensor.any(axis=1).all()


@BOTH
@pytest.mark.parametrize("family", KINDS)
def test_a_token_of_30_000_characters(pipelines: Pipelines, family: str, engine: str) -> None:
    """It takes several windows, and nothing is cut off."""
    nlp = pipelines[family, engine]
    for word in ("unbelievable" * 2500, "東" * 3000):
        doc = Doc(nlp.vocab, words=["We", word, "Oslo", "pizza"])
        with budget_of(nlp, 1000) as shapes:
            (tensor,) = annotate(nlp, [doc])
        assert tensor.any(axis=1).all()
        n_pieces = len(encoder_of(nlp).loaded.tokenizer([doc.text])[0].ids)
        assert sum(n * length for n, length in shapes) >= n_pieces
        assert max(n * length for n, length in shapes) <= 1000
        assert n_pieces > 3000 or family == "bert" or word[0] == "東"


@pytest.mark.parametrize("family", KINDS)
def test_a_letter_under_3000_marks(pipelines: Pipelines, family: str) -> None:
    nlp = pipelines[family, "int8"]
    word = "q" + "\u0323\u0307" * 1500
    whole, apart = make_docs(nlp, [f"Ann {word} Oslo", tuple((c, False) for c in f"a{word}b")])
    for doc, tensor in zip((whole, apart), annotate(nlp, [whole, apart]), strict=True):
        assert tensor[[0, 1, -1]].any(axis=1).all(), doc[:2]


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "sum", "max"])
def test_each_pooling_takes_everything(pipelines: Pipelines, bert_dir: Path, pooling: str) -> None:
    """Each gives vectors to the same tokens."""
    mean = pipelines["bert", "int8"]
    nlp = to_int8(make_nlp(bert_dir, window=WINDOW, overlap=OVERLAP, pooling=pooling))
    found = annotate(nlp, make_docs(nlp, EXAMPLES))
    for tensor, other in zip(found, annotate(mean, make_docs(mean, EXAMPLES)), strict=True):
        assert (tensor.any(axis=1) == other.any(axis=1)).all()


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2"])
def test_docs_have_trf_data(
    pipelines: Pipelines, encoder_dirs: dict[str, Path], family: str
) -> None:
    """Their vectors are the same as without, and the aligned pieces are complete."""
    plain = pipelines[family, "int8"]
    nlp = to_int8(make_nlp(encoder_dirs[family], window=WINDOW, overlap=OVERLAP))
    nlp.get_pipe("transformer").set_extra_annotations = TrfData()
    docs = make_docs(nlp, EXAMPLES)
    expected = annotate(plain, make_docs(plain, EXAMPLES))
    for doc, tensor, alone in zip(docs, annotate(nlp, docs), expected, strict=True):
        np.testing.assert_array_equal(tensor, alone)
        align = doc._.trf_data.align
        assert ((align.lengths > 0) == tensor.any(axis=1)).all()
        if len(doc):
            states = doc._.trf_data.model_output.last_hidden_state
            assert np.isfinite(states).all()
            assert (align.dataXd < states.shape[0] * states.shape[1]).all()


# Sources of tokens


@BOTH
@pytest.mark.parametrize("family", KINDS)
def test_tokens_of_one_piece_share_its_vector(
    pipelines: Pipelines, family: str, engine: str
) -> None:
    """The tokens are the characters of a word of one piece."""
    nlp = pipelines[family, engine]
    whole = Doc(nlp.vocab, words=["Ann", "of"], spaces=[True, False])
    cut = Doc(nlp.vocab, words=list("Annof"), spaces=[c == 2 for c in range(5)])
    (pieces,) = encoder_of(nlp).loaded.tokenizer(["Ann of"])
    assert [(a, b) for a, b in zip(pieces.starts, pieces.ends, strict=True) if a < b] == [
        (0, 3),
        (4, 6),
    ]
    words, characters = annotate(nlp, [whole])[0], annotate(nlp, [cut])[0]
    np.testing.assert_array_equal(characters, words[[0, 0, 0, 1, 1]])


@EACH
def test_a_literal_special_piece_is_text(pipelines: Pipelines, family: str) -> None:
    """The engine gets special pieces only at the ends of windows, and every token has a vector,
    even if tokens cut through the literal.
    """
    nlp = pipelines[family, "int8"]
    encoder = encoder_of(nlp)
    vocab = encoder.loaded.pieces.tolist()
    special = [vocab.index(piece) for role, piece in special_pieces(family).items() if role != UNK]
    docs = [Doc(nlp.vocab, words=["We", literal, "of"]) for literal in LITERAL]
    for literal in LITERAL:
        words = ["We", literal[0], literal[1:-1], literal[-1], "of"]
        docs.append(Doc(nlp.vocab, words=words, spaces=[True, False, False, True, False]))
    with patch.object(encoder.engine, "predict", wraps=encoder.engine.predict) as spy:
        tensors = annotate(nlp, docs)
    for tensor in tensors:
        assert tensor.any(axis=1).all()
    for call in spy.call_args_list:
        batch = call.args[0]
        assert not np.isin(batch.ids.ravel()[batch.positions], special).any()
