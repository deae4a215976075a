"""Pairs of texts as windows of pieces, and their hidden states."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from thinc.api import NumpyOps
from tokenizers import Tokenizer, models

from spacy_distil.encoding.encode import DocText
from spacy_distil.encoding.pairs import encode_pairs, read_text
from spacy_distil.encoding.pieces import PieceTokenizer
from spacy_distil.engines.frozen import FUSED_SETTING
from spacy_distil.engines.fused import library
from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.export.encoders import SourceEncoder, replace_encoders
from spacy_distil.export.graph import Precision
from tests.pairs.conftest import ODD, PAIRS, build, inputs_of, shim_of, texts_of
from tests.util import SENTENCES, build_tokenizer, write_encoder

OPS = NumpyOps()


@pytest.mark.filterwarnings("ignore:.*longer than the specified maximum")
def test_windows_and_states_are_those_of_transformers(encoder_dir: Path) -> None:
    """The special pieces and types of tokens of each family, one pair or many at a time."""
    encoder = shim_of(build(encoder_dir))
    model = transformers.AutoModel.from_pretrained(encoder_dir).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder_dir)
    compared = 0
    encoded = encoder.encode_pairs(PAIRS)
    states = encoder.predict_pairs(encoded, OPS)
    begins = encoded.first_rows[np.cumsum(encoded.n_windows) - encoded.n_windows]
    for i, (first, second) in enumerate(PAIRS):
        inputs = inputs_of(model, tokenizer, first, second)
        own = encoder.encode_pairs([(first, second)])
        if encoded.n_windows[i] > 1:
            continue
        # transformers reads special pieces in a text as such, and spaces at its end as pieces.
        if texts_of(own.windows) != inputs["input_ids"].tolist():
            assert {first, second} & set(ODD)
            continue
        with torch.inference_mode():
            expected = model(**inputs).last_hidden_state[0].numpy()
        np.testing.assert_allclose(encoder.predict_pairs(own, OPS), expected, atol=1e-5)
        rows = states[begins[i] : begins[i] + len(expected)]
        np.testing.assert_allclose(rows, expected, atol=1e-5)
        compared += 1
    assert compared > len(SENTENCES)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@given(
    first=st.lists(st.sampled_from(SENTENCES[0].split()), max_size=40),
    second=st.lists(st.sampled_from(SENTENCES[1].split()), max_size=60),
    window=st.integers(10, 40),
    overlap=st.integers(0, 3),
)
def test_every_part_of_one_text_meets_every_part_of_the_other(
    family: str, first: list[str], second: list[str], window: int, overlap: int
) -> None:
    tokenizer = PieceTokenizer(build_tokenizer(family))
    texts = " ".join(first), " ".join(second)
    encoded = encode_pairs([texts], tokenizer, window=window, overlap=overlap)
    template = tokenizer.pair_template
    ids = [tokenizer([text])[0].ids.tolist() for text in texts]
    met: set[tuple[int, int]] = set()
    for pieces, place in zip(encoded.windows, encoded.seconds, strict=True):
        own = pieces.tolist()
        assert len(own) <= window
        n_middle, n_suffix = len(template.middle), len(template.suffix)
        assert own[: len(template.prefix)] == template.prefix
        assert own[place - n_middle : place] == template.middle
        assert own[len(own) - n_suffix :] == template.suffix
        parts = own[len(template.prefix) : place - n_middle], own[place : len(own) - n_suffix]
        places = [
            [
                i
                for i in range(len(whole))
                if whole[i : i + len(part)] == part and i + len(part) <= len(whole)
            ]
            for whole, part in zip(ids, parts, strict=True)
        ]
        assert all(places) or not all(ids)
        for begins in itertools.product(*places):
            met |= {
                (begins[0] + i, begins[1] + j)
                for i in range(len(parts[0]))
                for j in range(len(parts[1]))
            }
    assert met >= set(itertools.product(range(len(ids[0])), range(len(ids[1]))))
    assert encoded.n_windows == [len(encoded.windows)]


def test_rows_of_tokens_are_their_first_and_last_pieces(bert_dir: Path) -> None:
    nlp = build(bert_dir)
    encoder = shim_of(nlp)
    question, doc = nlp.make_doc(SENTENCES[0]), nlp.make_doc(SENTENCES[1])
    encoded = encoder.encode_pairs([("Who?", SENTENCES[2]), (question, doc)])
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert_dir)
    pair = tokenizer(SENTENCES[0], SENTENCES[1], return_offsets_mapping=True)
    offset = encoded.first_rows[1]
    sequence = pair.sequence_ids()
    own = encoded.n_tokens[0]
    for pooling, pick in ((encoded.begins, 0), (encoded.ends, -1)):
        rows = np.split(pooling.columns, np.cumsum(pooling.lengths)[:-1])[own:]
        for token, found in zip(doc, rows, strict=True):
            pieces = [
                i
                for i, (start, end) in enumerate(pair["offset_mapping"])
                if sequence[i] == 1 and start < token.idx + len(token) and end > token.idx
            ]
            assert found.tolist() == [offset + pieces[pick]]


def test_words_of_a_string() -> None:
    for text in (*ODD, "  two  words ", "one"):
        read = read_text(text)
        assert read.text == text.rstrip()
        assert sum(map(sum, read.sizes.tolist())) == len(read.text)
        assert [word.strip() for word in read.split() if word.strip()] == text.split()
    assert isinstance(read_text(read), DocText)


def test_a_tokenizer_without_a_place_for_a_second_text() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(WeightsError, match="no special pieces around two texts"):
        _ = PieceTokenizer(tokenizer).pair_template


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("family", ["bert", "electra", "albert", "roberta", "distilbert"])
def test_graphs_know_the_second_type_of_tokens(
    family: str, fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph in float32, and int8 weights in compiled code, against the torch engine."""
    if fused and library.load() is None:
        pytest.skip("has no compiled part, or a CPU without AVX-512 VNNI")
    if not fused:
        monkeypatch.setenv(FUSED_SETTING, "0")
    nlp = build(write_encoder(tmp_path / "encoder", family, width=128))
    encoder = shim_of(nlp)
    precision = Precision(frozenset(range(2)), embeddings=True) if fused else Precision()
    encoded = encoder.encode_pairs(PAIRS)
    expected = encoder.predict_pairs(encoded, OPS)
    frozen = SourceEncoder(encoder, reads_pairs=True).to_shim(precision)
    assert frozen.engine.n_token_types == encoder.engine.n_token_types
    actual = frozen.predict_pairs(frozen.encode_pairs(PAIRS), OPS)
    if not fused:
        np.testing.assert_allclose(actual, expected, atol=2e-5)
    assert cosine(actual, expected) > (0.99 if fused else 0.999999)
    if encoder.engine.n_token_types > 1:
        # As different from the states without types as the torch engine's.
        without = SourceEncoder(encoder).to_shim(precision)
        with pytest.raises(ConfigError, match="has no types of tokens"):
            without.encode_pairs(PAIRS)
        ignored = without.predict_pairs(encoded, OPS)
        assert cosine(ignored, expected) < cosine(actual, expected) - 1e-3
    # Single texts have the first type alone.
    docs = [nlp.make_doc(text) for text in SENTENCES]
    pairs = zip(frozen.predict_docs(docs, OPS), encoder.predict_docs(docs, OPS), strict=True)
    for own, other in pairs:
        assert cosine(own, other) > (0.99 if fused else 0.999999)


def cosine(left: Any, right: Any) -> float:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(np.mean((left * right).sum(axis=1) / norms))


def test_a_deberta_with_types_has_no_graph_for_pairs(tmp_path: Path) -> None:
    directory = write_encoder(tmp_path / "deberta", "deberta-v2")
    config = transformers.AutoConfig.from_pretrained(directory, type_vocab_size=2)
    transformers.AutoModel.from_config(config).save_pretrained(directory)
    encoder = shim_of(build(directory))
    with pytest.raises(ConfigError, match="type_vocab_size = 2 cannot be turned"):
        SourceEncoder(encoder, reads_pairs=True).to_shim(Precision())
    replace_encoders(
        nlp := build(directory), {"transformer": SourceEncoder(encoder).to_shim(Precision())}
    )
    assert nlp("Ann visited Rome").tensor.any()
