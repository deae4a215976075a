"""What lies where in a cache, and how large it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spacy_distil.distillation.pipeline.heads.base import Field

Fields = Mapping[str, Mapping[str, Field]]

SHARD_TOKENS = 50_000
SHARD_BYTES = 256_000_000
ITEMS_PER_TOKEN = 2  # a guess, for the prediction of the size
OFFSET_DTYPE = "int64"


@dataclass(frozen=True)
class Layout:
    """What lies where in a cache.

    fields: what is recorded, by head and name.
    starts: number of tokens before each doc, and of all, (n_docs + 1,).
    bounds: first doc of each shard, and number of docs, (n_shards + 1,).
    """

    fields: Fields
    starts: NDArray[np.int64]
    bounds: list[int]

    @classmethod
    def of(cls, fields: Fields, lengths: Sequence[int]) -> Layout:
        """lengths: tokens of each doc."""
        for head, name, field in each_field(fields):
            if not format_code(field.dtype):
                raise ValueError(
                    f"{head}.{name}: dtype = {field.dtype!r} cannot be cached. Expected an integer "
                    "or floating-point format of at most 64 bits."
                )
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        per_token, per_doc = _sizes(fields)
        sizes = per_token * starts + per_doc * np.arange(len(starts))
        limits = [(starts, SHARD_TOKENS), (sizes, SHARD_BYTES)]
        return cls(fields, starts, cut(range(len(lengths)), limits))

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
        """Whether nothing is recorded."""
        return not any(self.fields.values())

    @property
    def is_estimated(self) -> bool:
        """Whether the size depends on a number of items that is not known beforehand."""
        return any(field.per == "item" for _, _, field in each_field(self.fields))

    def docs(self, shard: int) -> range:
        """Numbers of the docs in a shard."""
        return range(self.bounds[shard], self.bounds[shard + 1])

    def tokens(self, docs: range) -> int:
        """Number of tokens in these docs."""
        return int(self.starts[docs.stop] - self.starts[docs.start])

    def n_bytes(self, shards: Sequence[int] | None = None) -> int:
        """Predicted size of shards on disk; None for all of them.

        Exact but for a few hundred bytes a shard, unless it is estimated.
        """
        per_token, per_doc = _sizes(self.fields)
        docs = map(self.docs, range(self.n_shards) if shards is None else shards)
        return sum(per_token * self.tokens(each) + per_doc * len(each) for each in docs)


def each_field(fields: Fields) -> Iterator[tuple[str, str, Field]]:
    """Head, name and field."""
    for head, own in fields.items():
        for name, field in own.items():
            yield head, name, field


def cut(docs: range, limits: Sequence[tuple[NDArray[np.int64], int]]) -> list[int]:
    """Where to cut docs into runs that keep to all limits, or of one doc that is beyond them.

    limits: what a run has at most, and of that the sum before each doc, and of all, (n_docs + 1,).
    RETURNS: the first doc of each run, and the end of `docs`.
    """
    bounds = [docs.start]
    while bounds[-1] < docs.stop:
        start = bounds[-1]
        stops = (np.searchsorted(sums, sums[start] + n, side="right") for sums, n in limits)
        bounds.append(min(max(int(min(stops)) - 1, start + 1), docs.stop))
    return bounds


def format_code(dtype: str) -> str | None:
    """The name of a number format in safetensors files; None where it has none."""
    kind, size = np.dtype(dtype).kind, np.dtype(dtype).itemsize
    return f"{kind.upper()}{8 * size}" if kind in "fiu" and size <= 8 else None


def _sizes(fields: Fields) -> tuple[int, int]:
    """Bytes for each token and, besides, for each doc; of items, an estimate."""
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
