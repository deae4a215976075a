"""The text to distil on, real or synthetic, in full blocks and in documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from benchmarks.distillation_step.plain_loop import BERT_SPECIAL, Special
from spacy_distil.errors import CorpusError
from spacy_distil.text.packing import pack, tokenize
from spacy_distil.text.plain_text import find_files, read_parts

# Documents of synthetic text have log-normal lengths, similar to paragraphs and articles.
MEDIAN_PIECES, SIGMA = 180, 0.8


@dataclass(frozen=True)
class Text:
    """Documents in pieces.

    name: for the results.
    documents: ids of the pieces, without special pieces.
    vocabulary: its size.
    """

    name: str
    documents: list[np.ndarray]
    vocabulary: int
    special: Special


@dataclass(frozen=True)
class Packed:
    """The same text twice: in full blocks, and in documents.

    blocks: ids of the pieces, with special pieces.
    documents: ids of the pieces, without special pieces. The last document may be cut.
    """

    blocks: list[list[int]]
    documents: list[np.ndarray]
    text: Text

    @property
    def n_pieces(self) -> int:
        return sum(map(len, self.documents))


def synthetic_text(vocabulary: int, n_pieces: int, *, seed: int = 0) -> Text:
    """Make documents of random pieces, at least `n_pieces` in total."""
    rng = np.random.default_rng(seed)
    special = BERT_SPECIAL
    ordinary = np.setdiff1d(np.arange(vocabulary), special)
    documents: list[np.ndarray] = []
    total = 0
    while total < n_pieces:
        length = max(1, round(MEDIAN_PIECES * np.exp(SIGMA * rng.standard_normal())))
        documents.append(rng.choice(ordinary, length))
        total += length
    name = (
        f"synthetic text (log-normal lengths of documents, median {MEDIAN_PIECES} pieces, "
        f"sigma {SIGMA})"
    )
    return Text(name, documents, vocabulary, special)


def read_text(paths: Sequence[Path], tokenizer: str, n_pieces: int) -> Text:
    """Read documents from the beginning of each file, at least `n_pieces` in total if there is
    enough text.

    paths: text files, or directories of text files.
    tokenizer: directory or hub name.
    """
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    loaded.backend_tokenizer.no_truncation()
    loaded.backend_tokenizer.no_padding()
    special = Special(
        loaded.pad_token_id, loaded.cls_token_id, loaded.sep_token_id, loaded.mask_token_id
    )
    files = find_files(paths, setting="--text")
    documents: list[np.ndarray] = []
    for file in files:
        left = -(-n_pieces // len(files))
        whole: list[int] = []
        for pieces, ends in tokenize(read_parts(file), loaded):
            whole += pieces
            if ends and whole:
                documents.append(np.array(whole))
                left -= len(whole)
                whole = []
            if left <= 0:
                break
    order = np.random.default_rng(0).permutation(len(documents))
    name = ", ".join(file.name for file in files)
    return Text(name, [documents[i] for i in order], len(loaded), special)


def pack_text(text: Text, length: int, n_blocks: int) -> Packed:
    """Pack the first documents into `n_blocks` full blocks of `length` pieces."""
    stream = ((document.tolist(), True) for document in text.documents)
    special = text.special
    packed = pack(stream, block_size=length, first=special.first, last=special.last)
    blocks = list(islice(packed, n_blocks))
    if len(blocks) < n_blocks or len(blocks[-1]) < length:
        raise CorpusError(
            f"{text.name}: {sum(map(len, text.documents)):,} pieces are too few for {n_blocks:,} "
            f"blocks of {length}. Give more --text (an even share is taken from each file), or "
            f"fewer --steps"
        )
    ends = (special.first, special.last)
    left = sum(piece not in ends for block in blocks for piece in block)
    documents = []
    for document in text.documents:
        documents.append(document[:left])
        left -= len(documents[-1])
        if not left:
            break
    return Packed(blocks, documents, text)
