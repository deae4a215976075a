"""Reading the records of documents from the shards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from spacy_distil.distillation.pipeline.cache.layout import Layout
from spacy_distil.distillation.pipeline.cache.shards import MappedField, map_shard, shard_path
from spacy_distil.distillation.pipeline.heads.base import Array, Records

OPEN_SHARDS = 64  # each holds a file descriptor, of which a process may have as few as 256


class TeacherCache:
    """The teacher's records of all docs.

    Several processes may share a cache: it can be pickled, and a fork does not break it.

    identity: of the cache. All its shards carry it.
    """

    def __init__(self, directory: Path, layout: Layout, identity: str) -> None:
        self.directory = directory
        self.layout = layout
        self.identity = identity
        self._shard = lru_cache(maxsize=OPEN_SHARDS)(self._map)
        self._whole: set[int] = set()  # the shards with the digest that was written

    def read(self, docs: Sequence[int]) -> dict[str, Records]:
        """Read the records of docs.

        docs: their numbers.
        RETURNS: by head and field, an array for each doc in the order of `docs`, (rows, width). The
            arrays are read-only views of the files.
        """
        layout = self.layout
        numbers = np.asarray(docs, dtype=np.int64)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < layout.n_docs:
            raise IndexError(f"Expected documents from 0 to {layout.n_docs - 1}, got {docs}.")
        records: dict[str, dict[str, list[Array]]] = {
            head: {name: [] for name in fields} for head, fields in layout.fields.items()
        }
        if layout.is_empty:
            return {**records}
        shards = np.searchsorted(layout.bounds, numbers, side="right") - 1
        firsts = np.asarray(layout.bounds)[shards]
        begins = layout.starts[numbers] - layout.starts[firsts]
        ends = layout.starts[numbers + 1] - layout.starts[firsts]
        columns = (shards, numbers - firsts, begins, ends)
        for shard, doc, begin, end in zip(*(column.tolist() for column in columns), strict=True):
            for head, name, per, rows, offsets in self._shard(shard):
                if per == "token":
                    part = rows[begin:end]
                elif per == "doc":
                    part = rows[doc : doc + 1]
                else:
                    part = rows[offsets[doc] : offsets[doc + 1]]
                records[head][name].append(part)
        return {**records}

    @property
    def n_bytes(self) -> int:
        """The size on disk."""
        if self.layout.is_empty:
            return 0
        shards = range(self.layout.n_shards)
        return sum(shard_path(self.directory, shard).stat().st_size for shard in shards)

    def _map(self, shard: int) -> list[MappedField]:
        path, is_first = shard_path(self.directory, shard), shard not in self._whole
        fields = map_shard(path, self.layout, shard, self.identity, check_values=is_first)
        self._whole.add(shard)
        return fields

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("directory", "layout", "identity")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
