"""Turn docs into padded batches of pieces, and piece vectors back into token vectors.

This needs only numpy and `tokenizers`, and is the same for all engines.
"""

from spacy_distil.encoding.batches import Batch, RaggedBatch, make_batches, make_ragged_batches
from spacy_distil.encoding.encode import (
    PIECES_FROM,
    DocText,
    EncodedDocs,
    PiecesFrom,
    encode_docs,
    read_docs,
)
from spacy_distil.encoding.pairs import EncodedPairs, Text, encode_pairs
from spacy_distil.encoding.pieces import PieceTokenizer
from spacy_distil.encoding.pooling import POOLINGS, Pooling, split_docs, to_ops

__all__ = [
    "PIECES_FROM",
    "POOLINGS",
    "Batch",
    "DocText",
    "EncodedDocs",
    "EncodedPairs",
    "PieceTokenizer",
    "PiecesFrom",
    "Pooling",
    "RaggedBatch",
    "Text",
    "encode_docs",
    "encode_pairs",
    "make_batches",
    "make_ragged_batches",
    "read_docs",
    "split_docs",
    "to_ops",
]
