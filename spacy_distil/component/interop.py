"""Set `doc._.trf_data` for code written for spacy-transformers, if the component's settings say so.

    [components.transformer.set_extra_annotations]
    @annotation_setters = "spacy-distil.TrfData.v1"

Registry and setting are the same as in spacy-transformers, which need not be installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import catalogue
import numpy as np
from spacy.tokens import Doc
from spacy.util import registry
from thinc.api import Ops
from thinc.types import Floats2d, Floats3d, Ragged

from spacy_distil.component.loading import LoadedEncoder
from spacy_distil.component.shim import EncoderShim
from spacy_distil.component.trf_data import (
    ModelOutput,
    TransformerBatch,
    TransformerData,
    WordpieceBatch,
    make_ragged,
)
from spacy_distil.encoding import DocText, EncodedDocs, to_ops

# Receives docs whose `doc._.trf_data` is set, and the data of all of them.
AnnotationSetter = Callable[[list[Doc], TransformerBatch], None]

EXTENSION = "trf_data"

# spacy-transformers creates the registry again when it is imported. The entries stay.
if not hasattr(registry, "annotation_setters"):
    registry.annotation_setters = catalogue.create("spacy", "annotation_setters", entry_points=True)


def TrfData() -> AnnotationSetter:
    """Return the setter for `doc._.trf_data` without any other annotation."""
    return set_nothing_else


def set_nothing_else(docs: list[Doc], batch: TransformerBatch) -> None:
    """Set no annotations beyond `doc._.trf_data`."""


def install_extension() -> None:
    """Register `doc._.trf_data`, which is None until it is set, as in spacy-transformers."""
    if not Doc.has_extension(EXTENSION):
        Doc.set_extension(EXTENSION, default=None)


def set_trf_data(docs: Iterable[Doc], batch: TransformerBatch) -> None:
    """Write `doc._.trf_data` of each doc."""
    install_extension()
    for doc, data in zip(docs, batch.doc_data, strict=True):
        doc._.set(EXTENSION, data)


class PredictedDocs(list[Floats2d]):
    """Vectors of each doc, (n_vectors, width), and the data for `doc._.trf_data`."""

    def __init__(self, tokvecs: Iterable[Floats2d], batch: TransformerBatch) -> None:
        super().__init__(tokvecs)
        self.batch = batch


def predict_with_pieces(
    encoder: EncoderShim, docs: Sequence[Doc | DocText], ops: Ops
) -> PredictedDocs:
    """Compute vectors as `EncoderShim.predict_docs` does, and keep all vectors of pieces."""
    tokvecs, encoded, states = encoder.predict_pieces(docs, ops, with_docs=True)
    return PredictedDocs(tokvecs, _make_batch(encoder.loaded, encoded, states, ops))


def _make_batch(
    loaded: LoadedEncoder, encoded: EncodedDocs, states: Floats2d, ops: Ops
) -> TransformerBatch:
    """Distribute pieces and hidden states among the docs.

    states: (n_pieces, width) of all windows, special pieces included.
    """
    tokenizer = loaded.tokenizer
    prefix, suffix = (np.array(ids, dtype=np.int64) for ids in (tokenizer.prefix, tokenizer.suffix))
    ids = [part for window in encoded.windows for part in (prefix, window, suffix)]
    pieces = np.concatenate([*ids, np.zeros(0, dtype=np.int64)])
    sizes = np.array([len(ids) for ids in encoded.windows], dtype=np.int64) + tokenizer.n_special
    bounds = np.append(0, np.cumsum(sizes))
    doc_data = []
    begin = 0  # first window of the doc
    for n_tokens, n_windows, align in zip(
        encoded.n_tokens, encoded.n_windows, _align(encoded, sizes, len(prefix)), strict=True
    ):
        end = begin + n_windows
        if n_tokens:
            own = slice(bounds[begin], bounds[end])
            # (n_windows, length): true for pieces, false for padding.
            filled = np.arange(sizes[begin:end].max(initial=0)) < sizes[begin:end, None]
            states_of_doc = _to_grid(ops, states[own], filled)
            doc_data.append(
                TransformerData(
                    wordpieces=_wordpieces(loaded, pieces[own], filled),
                    model_output=ModelOutput(last_hidden_state=states_of_doc),
                    align=align,
                )
            )
        else:
            doc_data.append(TransformerData.empty(loaded.engine.width, xp=ops.xp))
        begin = end
    return TransformerBatch(doc_data)


def _wordpieces(loaded: LoadedEncoder, pieces: np.ndarray, filled: np.ndarray) -> WordpieceBatch:
    """Arrange the pieces of a doc in a grid.

    pieces: (n_pieces,) ids of all windows of a doc.
    filled: (n_windows, length) bool, true for pieces, false for padding.
    """
    ids = np.full(filled.shape, loaded.pad_id, dtype=np.int64)
    ids[filled] = pieces
    has_types = loaded.config.get("type_vocab_size", 0) > 1
    return WordpieceBatch(
        strings=loaded.pieces[ids].tolist(),
        input_ids=ids,
        attention_mask=filled.astype("f"),
        lengths=filled.sum(axis=1).tolist(),
        token_type_ids=np.zeros_like(ids) if has_types else None,
    )


def _to_grid(ops: Ops, states: Floats2d, filled: np.ndarray) -> Floats3d:
    """Copy the hidden states of a doc to a grid, with zeros for padding.

    states: (n_pieces, width), window by window.
    filled: (n_windows, length) bool, true for pieces, false for padding.
    RETURNS: (n_windows, length, width).
    """
    n_windows, length = filled.shape
    grid = ops.alloc3f(n_windows, length, states.shape[1])
    ops.reshape2f(grid, -1, states.shape[1])[to_ops(ops, np.flatnonzero(filled))] = states
    return grid


def _align(encoded: EncodedDocs, sizes: np.ndarray, n_prefix: int) -> list[Ragged]:
    """Compute the alignment of each doc, see `TransformerData`.

    sizes: (n_windows,) pieces of each window of all docs, special ones included.
    """
    doc_of_window = np.repeat(np.arange(len(encoded.n_windows)), encoded.n_windows)
    lengths = np.zeros(len(encoded.n_windows), dtype=np.int64)  # of the rows of each doc's grid
    np.maximum.at(lengths, doc_of_window, sizes)
    # The place of each window in the flattened grid of its doc, and of each row.
    number = np.arange(len(sizes)) - _starts(encoded.n_windows)[doc_of_window]
    begins = number * lengths[doc_of_window]
    n_own = [len(window) for window in encoded.windows]
    window = np.repeat(np.arange(len(n_own)), n_own)
    places = np.arange(len(window)) - _starts(n_own)[window] + n_prefix + begins[window]
    rows, n_rows = encoded.token_rows()
    token = np.repeat(np.arange(len(n_rows)), n_rows)
    entries = places[rows]
    entries = entries[np.lexsort((entries, token))].astype("i")
    token_bounds = np.append(0, np.cumsum(encoded.n_tokens, dtype=np.int64))
    entry_bounds = np.append(0, np.cumsum(n_rows))[token_bounds]
    return [
        make_ragged(entries[begin:end].copy(), n_rows[first:last].copy())
        for (first, last), (begin, end) in zip(
            pairwise(token_bounds), pairwise(entry_bounds), strict=True
        )
    ]


def _starts(counts: Sequence[int]) -> np.ndarray:
    """Return the start of each of several ranges in a row. counts: their lengths."""
    return np.cumsum(counts, dtype=np.int64) - np.asarray(counts, dtype=np.int64)
