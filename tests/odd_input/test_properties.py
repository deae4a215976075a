"""Properties that hold for all docs, in all families and on both engines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from spacy.tokens import Doc

from spacy_distil.encoding import encode_docs
from tests.odd_input.conftest import ENGINES, OVERLAP, WINDOW, Pipelines
from tests.odd_input.texts import (
    BATCHES,
    EXAMPLES,
    PARTS,
    SETTINGS,
    SOURCES,
    Source,
    is_kept,
    make_doc,
    make_docs,
)
from tests.util import FAMILIES, WIDTH, encoder_of

BOTH = pytest.mark.parametrize("engine", ENGINES)
EACH = pytest.mark.parametrize("family", FAMILIES)


def annotate(nlp: Any, docs: list[Doc], batch_size: int = 1000) -> list[np.ndarray]:
    """Encode docs together and return their `doc.tensor`. Check the properties of each."""
    tensors = []
    for doc in nlp.pipe(docs, batch_size=batch_size):
        assert doc.tensor.shape == (len(doc), WIDTH)
        assert doc.tensor.dtype == np.float32
        assert np.isfinite(doc.tensor).all()
        assert doc.tensor.flags.owndata or doc.tensor.base.nbytes == doc.tensor.nbytes
        tensors.append(doc.tensor)
    assert len(tensors) == len(docs)
    return tensors


@contextmanager
def budget_of(nlp: Any, max_batch_pieces: int) -> Iterator[list[tuple[int, int]]]:
    """Set the budget for a while. YIELDS: (n_windows, length) of each batch of the engine."""
    encoder = encoder_of(nlp)
    before, engine = encoder.settings, encoder.engine
    shapes: list[tuple[int, int]] = []
    encoder.settings = replace(before, max_batch_pieces=max_batch_pieces)
    try:
        with patch.object(engine, "predict", wraps=engine.predict) as spy:
            yield shapes
        shapes.extend(call.args[0].ids.shape for call in spy.call_args_list)
    finally:
        encoder.settings = before


# The vectors


@cache
def transformers_model(directory: Path) -> Any:
    return transformers.AutoModel.from_pretrained(directory).eval()


def pieces_of_tokens(nlp: Any, doc: Doc) -> list[list[int]]:
    """Find the pieces that share a character with each token, and the pieces between them."""
    (pieces,) = encoder_of(nlp).loaded.tokenizer([doc[:].text])  # without the last space
    owned = []
    for token in doc:
        found = [
            i
            for i, (start, end) in enumerate(zip(pieces.starts, pieces.ends, strict=True))
            if max(start, token.idx) < min(end, token.idx + len(token))
        ]
        owned.append(list(range(found[0], found[-1] + 1)) if found else [])
    return owned


def naive_vectors(nlp: Any, directory: Path, doc: Doc) -> np.ndarray:
    """Compute vectors with the model of transformers, window by window and token by token."""
    tokenizer = encoder_of(nlp).loaded.tokenizer
    encoded = encode_docs([doc], tokenizer, window=WINDOW, overlap=OVERLAP, pooling="mean")
    (pieces,) = tokenizer([doc[:].text])
    states: list[list[torch.Tensor]] = [[] for _ in pieces.ids]
    which = iter(encoded.row_pieces)
    for window in encoded.windows:
        ids = torch.tensor([[*tokenizer.prefix, *window, *tokenizer.suffix]])
        assert ids.shape[1] <= WINDOW
        with torch.no_grad():
            (hidden,) = transformers_model(directory)(input_ids=ids).last_hidden_state
        for piece_id, state in zip(window, hidden[len(tokenizer.prefix) :], strict=False):
            piece = next(which)
            assert pieces.ids[piece] == piece_id
            states[piece].append(state)
    assert all(states)  # each piece stands in a window
    tokens = [torch.zeros(WIDTH)]
    for owned in pieces_of_tokens(nlp, doc):
        means = [torch.stack(states[piece]).mean(0) for piece in owned]
        tokens.append(torch.stack(means).mean(0) if means else torch.zeros(WIDTH))
    return torch.stack(tokens)[1:].numpy()


@EACH
@SETTINGS
@given(source=SOURCES)
@example(source="".join(PARTS))
def test_vectors_are_those_of_transformers(
    pipelines: Pipelines, family: str, source: Source
) -> None:
    """On both engines. A token without pieces has a vector of zeros."""
    nlp = pipelines[family, "torch"]
    doc = make_doc(nlp, source)
    (found,) = annotate(nlp, [doc])
    expected = naive_vectors(nlp, pipelines.directories[family], doc)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    (of_int8,) = annotate(pipelines[family, "int8"], [make_doc(nlp, source)])
    for tensor in (found, of_int8):
        assert (tensor.any(axis=1) == expected.any(axis=1)).all()


@EACH
@SETTINGS
@given(sources=BATCHES)
@example(sources=list(EXAMPLES))
def test_no_token_is_lost_that_the_tokenizer_makes_something_of(
    pipelines: Pipelines, family: str, sources: list[Source]
) -> None:
    """Ask the tokenizer about single characters, because its offsets may be wrong."""
    nlp, kept = pipelines[family, "int8"], is_kept(family)
    docs = make_docs(nlp, sources)
    for doc, tensor in zip(docs, annotate(nlp, docs), strict=True):
        for token, vector in zip(doc, tensor, strict=True):
            assert vector.any() or not any(map(kept, token.text)), repr(token.text)


# Batches


@BOTH
@EACH
@SETTINGS
@given(
    sources=BATCHES,
    order=st.randoms(use_true_random=False),
    batch_size=st.integers(1, 7),
    budget=st.integers(1, 200),
)
@example(sources=list(EXAMPLES), order=None, batch_size=50, budget=100)
def test_a_doc_does_not_depend_on_its_batch(
    pipelines: Pipelines,
    family: str,
    engine: str,
    sources: list[Source],
    order: Any,
    batch_size: int,
    budget: int,
) -> None:
    """On the int8 engine not by a single bit. No batch is larger than allowed, except for a single
    window.
    """
    nlp = pipelines[family, engine]
    alone = [annotate(nlp, [doc])[0] for doc in make_docs(nlp, sources)]
    places = list(range(len(sources)))
    if order is not None:
        order.shuffle(places)
    with budget_of(nlp, budget) as shapes:
        together = annotate(nlp, make_docs(nlp, [sources[i] for i in places]), batch_size)
    assert all(n * length <= budget or n == 1 for n, length in shapes)
    assert all(length <= WINDOW for _, length in shapes)
    for i, found in zip(places, together, strict=True):
        if engine == "int8":
            np.testing.assert_array_equal(found, alone[i])
        else:
            np.testing.assert_allclose(found, alone[i], rtol=0, atol=1e-5)


# Heads, and what users do with docs


def annotations_of(doc: Doc) -> dict[str, Any]:
    return {
        "text": doc.text,
        "words": [(token.text, token.whitespace_, token.tag_) for token in doc],
        "entities": [(ent.start, ent.end, ent.label_) for ent in doc.ents],
        "cats": {label: round(score, 4) for label, score in doc.cats.items()},
    }


@SETTINGS
@given(sources=BATCHES)
@example(sources=list(EXAMPLES))
def test_heads_annotate_anything(annotating: Any, sources: list[Source]) -> None:
    """As alone, except for spaCy's textcat, which gives 0 to a single doc without tokens."""
    nlp = annotating
    docs = make_docs(nlp, sources)
    annotate(nlp, docs, batch_size=4)
    for doc, source in zip(docs, sources, strict=True):
        assert doc.cats
        alone = nlp(make_doc(nlp, source))
        if len(doc):
            assert annotations_of(doc) == annotations_of(alone)
        assert all(token.tag_ for token in doc)


@SETTINGS
@given(source=SOURCES, data=st.data())
def test_docs_are_cut_joined_and_saved(
    annotating: Any, source: Source, data: st.DataObject
) -> None:
    nlp = annotating
    doc = nlp(make_doc(nlp, source))
    start = data.draw(st.integers(0, len(doc)))
    end = data.draw(st.integers(start, len(doc)))
    span = doc[start:end]
    part = span.as_doc()
    np.testing.assert_array_equal(part.tensor, doc.tensor[start:end])
    for each in (doc, span, part):
        expected = doc.tensor[start:end] if each is not doc else doc.tensor
        if len(each):
            np.testing.assert_allclose(each.vector, expected.mean(0), rtol=0, atol=1e-5)
            assert np.isfinite(each.vector_norm)
        else:
            assert not each.vector.any()
    for token in doc:
        np.testing.assert_array_equal(token.vector, doc.tensor[token.i])

    again = Doc(doc.vocab).from_bytes(doc.to_bytes())
    assert annotations_of(again) == annotations_of(doc)
    np.testing.assert_array_equal(again.tensor, doc.tensor)

    joined = Doc.from_docs([doc, nlp("We like it"), part], ensure_whitespace=False)
    assert len(joined.tensor) == len(joined)
    if end - start > 1:
        with doc.retokenize() as retokenizer:
            retokenizer.merge(span)
        assert doc.tensor.shape == (len(doc), WIDTH)
