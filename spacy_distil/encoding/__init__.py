"""From docs to padded batches of pieces, and from piece vectors back to token vectors.

Only numpy and `tokenizers`: every engine, and every machine that runs a pipeline, goes this way.
"""

from spacy_distil.encoding.batches import Batch, make_batches
from spacy_distil.encoding.encode import EncodedDocs, encode_docs
from spacy_distil.encoding.pieces import PieceTokenizer
from spacy_distil.encoding.pooling import POOLINGS, Pooling, split_docs, to_ops

__all__ = [
    "POOLINGS",
    "Batch",
    "EncodedDocs",
    "PieceTokenizer",
    "Pooling",
    "encode_docs",
    "make_batches",
    "split_docs",
    "to_ops",
]
