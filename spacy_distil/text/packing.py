"""Pack documents into full blocks of pieces.

A block is `[CLS] pieces [SEP]`. If a document ends inside a block, a `[SEP]` separates it from the
next one. A document that does not fit continues in the next block, so no piece is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from spacy_distil.text.plain_text import Part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The most text in one call of the tokenizer, and the cost of a part besides its text, both in
# characters. They bound the memory that tokenizing takes.
CALL_CHARACTERS = 1_000_000
PART_COST = 100


def tokenize(
    parts: Iterable[Part], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[list[int], bool]]:
    """Yield the pieces of each part, without special pieces, and whether its document ends there.

    Text that spells a special piece, such as "[MASK]", is tokenized as text.
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
    """Pack documents into blocks of `block_size` pieces. Only the last block may be shorter.

    tokenized: pieces and ends of documents, as `tokenize` yields them.
    first, last: the pieces that open and close a block. `last` also separates documents.
    """
    room = block_size - 2
    stream: list[int] = []
    for pieces, ends in tokenized:
        stream += pieces
        if ends and stream and stream[-1] != last:
            stream.append(last)
        start = 0
        while len(stream) - start > room:  # `>` and not `>=`, so that the last block is never empty
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
