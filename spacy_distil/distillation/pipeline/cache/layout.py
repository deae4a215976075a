"""The places of all documents in a cache, and its size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spacy_distil.distillation.pipeline.heads.base import Field

Fields = Mapping[str, Mapping[str, Field]]

SHARD_TOKENS = 50_000
SHARD_BYTES = 256_000_000
ITEMS_PER_TOKEN = 2  # a guess, to predict the size
OFFSET_DTYPE = "int64"


@dataclass(frozen=True)
class Layout:
    """The places of all documents in a cache.

    fields: the fields by head and name.
    starts: the number of tokens before each doc, and of all tokens, (n_docs + 1,).
    bounds: the first doc of each shard, and the number of docs, (n_shards + 1,).
    """

    fields: Fields
    starts: NDArray[np.int64]
    bounds: list[int]

    @classmethod
    def of(cls, fields: Fields, lengths: Sequence[int], shard_tokens: int | None = None) -> Layout:
        """Lay out a cache.

        lengths: number of tokens of each doc.
        shard_tokens: the most tokens in a shard. None for SHARD_TOKENS.
        """
        for head, name, field in each_field(fields):
            if not format_code(field.dtype):
                raise ValueError(
                    f"{head}.{name}: dtype = {field.dtype!r} cannot be cached. Expected an integer "
                    "or floating-point format of at most 64 bits."
                )
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        per_token, per_doc = _sizes(fields)
        sizes = per_token * starts + per_doc * np.arange(len(starts))
        limits = [(starts, shard_tokens or SHARD_TOKENS), (sizes, SHARD_BYTES)]
        return cls(fields, starts, cut_at_limits(range(len(lengths)), limits))

    @property
    def n_docs(self) -> int:
        return len(self.starts) - 1

    @property
    def n_tokens(self) -> int:
        return int(self.starts[-1])

    @property
    def n_shards(self) -> int:
        return len(self.bounds) - 1

    @property
    def is_empty(self) -> bool:
        """Whether there are no fields."""
        return not any(self.fields.values())

    @property
    def is_estimated(self) -> bool:
        """Whether the size is a guess, because the number of items is not known."""
        return any(field.per == "item" for _, _, field in each_field(self.fields))

    def docs(self, shard: int) -> range:
        """Return the numbers of the docs in a shard."""
        return range(self.bounds[shard], self.bounds[shard + 1])

    def tokens(self, docs: range) -> int:
        """Count the tokens of docs."""
        return int(self.starts[docs.stop] - self.starts[docs.start])

    def n_bytes(self, shards: Sequence[int] | None = None) -> int:
        """Predict the size of shards on disk. None means all shards.

        The error is a few hundred bytes per shard, unless the size is a guess.
        """
        per_token, per_doc = _sizes(self.fields)
        docs = map(self.docs, range(self.n_shards) if shards is None else shards)
        return sum(per_token * self.tokens(each) + per_doc * len(each) for each in docs)


def each_field(fields: Fields) -> Iterator[tuple[str, str, Field]]:
    """Yield the head, the name and the field for all fields."""
    for head, own in fields.items():
        for name, field in own.items():
            yield head, name, field


def cut_at_limits(docs: range, limits: Sequence[tuple[NDArray[np.int64], int]]) -> list[int]:
    """Cut docs into parts that stay within all limits. A doc beyond a limit is a part by itself.

    limits: pairs of sums and a limit. The sums are those before each doc and of all docs,
        (n_docs + 1,). The limit is the greatest sum of a part.
    RETURNS: the first doc of each part, and the end of `docs`.
    """
    bounds = [docs.start]
    while bounds[-1] < docs.stop:
        start = bounds[-1]
        stops = (np.searchsorted(sums, sums[start] + n, side="right") for sums, n in limits)
        bounds.append(min(max(int(min(stops)) - 1, start + 1), docs.stop))
    return bounds


def format_code(dtype: str) -> str | None:
    """Return the name of a number format in safetensors files, or None if it has none."""
    kind, size = np.dtype(dtype).kind, np.dtype(dtype).itemsize
    return f"{kind.upper()}{8 * size}" if kind in "fiu" and size <= 8 else None


def _sizes(fields: Fields) -> tuple[int, int]:
    """Count the bytes per token, and the bytes per doc that come on top. Items are a guess."""
    per_token = per_doc = 0
    for _, _, field in each_field(fields):
        size = field.width * np.dtype(field.dtype).itemsize
        if field.per == "doc":
            per_doc += size
        elif field.per == "token":
            per_token += size
        else:
            per_token += ITEMS_PER_TOKEN * size
            per_doc += np.dtype(OFFSET_DTYPE).itemsize
    return per_token, per_doc
