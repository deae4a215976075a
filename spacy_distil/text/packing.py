"""From documents to blocks of pieces, each full.

A block is `[CLS] pieces [SEP]`; where a document ends inside a block, a `[SEP]` stands between it
and the next. A document that does not fit goes on in the next block: no piece is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from spacy_distil.text.plain_text import Part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# How much text the tokenizer is given in one call, and how much a part counts for besides its text,
# however short. They bound the memory that tokenizing takes.
CALL_CHARACTERS = 1_000_000
PART_COST = 100


def tokenize(
    parts: Iterable[Part], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[list[int], bool]]:
    """Pieces of each part, without special pieces, and whether its document ends there.

    Text that spells a special piece, such as "[MASK]", is text here.
    """
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        for call in _calls(parts):
            encodings = backend.encode_batch_fast([p.text for p in call], add_special_tokens=False)
            yield from ((e.ids, p.ends) for e, p in zip(encodings, call, strict=True))
    finally:
        backend.encode_special_tokens = before


def _calls(parts: Iterable[Part]) -> Iterator[list[Part]]:
    call: list[Part] = []
    size = 0
    for part in parts:
        call.append(part)
        size += len(part.text) + PART_COST
        if size > CALL_CHARACTERS:
            yield call
            call, size = [], 0
    yield call


def pack(
    tokenized: Iterable[tuple[Sequence[int], bool]], *, block_size: int, first: int, last: int
) -> Iterator[list[int]]:
    """Pack documents into blocks of `block_size` pieces; only the very last may be shorter.

    tokenized: see `tokenize`. first, last: the pieces that open and close a block; `last` also
        separates documents.
    """
    room = block_size - 2
    stream: list[int] = []
    for pieces, ends in tokenized:
        stream += pieces
        if ends and stream and stream[-1] != last:
            stream.append(last)
        start = 0
        while len(stream) - start > room:  # more than room: the last block is never empty
            start += stream[start] == last  # a separator need not open a block
            if len(stream) - start <= room:
                break
            yield [first, *stream[start : start + room], last]
            start += room
        del stream[:start]
    if stream and stream[0] == last:
        del stream[0]
    if stream and stream[-1] == last:
        stream.pop()
    if stream:
        yield [first, *stream, last]
