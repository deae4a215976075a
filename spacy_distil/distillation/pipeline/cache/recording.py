"""From the arrays of single documents to the tensors of a shard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spacy_distil.distillation.pipeline.cache.layout import (
    OFFSET_DTYPE,
    Layout,
    cut_at_limits,
    each_field,
)
from spacy_distil.distillation.pipeline.cache.shards import offsets_key, rows_key
from spacy_distil.distillation.pipeline.heads.base import Array, Field

# From the numbers of docs to their records: head -> field -> an array for each doc.
Record = Callable[[range], Mapping[str, Mapping[str, Sequence[Array]]]]

BATCH_TOKENS = 5_000  # the teacher gets so many at once


def record_shard(
    layout: Layout, docs: range, record: Record, advance: Callable[[int], Any]
) -> dict[str, Array]:
    """Record the docs of a shard. RETURNS: its tensors by name.

    docs: the docs of the shard.
    advance: receives the number of tokens of each batch.
    """
    parts: dict[str, list[Array]] = defaultdict(list)
    for start, stop in pairwise(cut_at_limits(docs, [(layout.starts, BATCH_TOKENS)])):
        batch = range(start, stop)
        recorded = record(batch)
        for head, fields in layout.fields.items():
            arrays = recorded.get(head, {})
            if set(arrays) != set(fields):
                raise ValueError(
                    f"{head}: expected the fields {sorted(fields)}, got {sorted(arrays)}."
                )
            for name, field in fields.items():
                label = f"{head}.{name}"
                counts = _check_shapes(label, field, arrays[name], layout.starts, batch)
                parts[rows_key(head, name)].append(_pack(label, field, arrays[name]))
                if field.per == "item":
                    parts[offsets_key(head, name)].append(counts)
        advance(layout.tokens(batch))
    tensors = {}
    for key in list(parts):
        tensors[key] = np.concatenate(parts.pop(key))  # `pop` frees the parts at once
    for head, name, field in each_field(layout.fields):
        if field.per == "item":
            key = offsets_key(head, name)
            tensors[key] = np.concatenate([[0], np.cumsum(tensors[key])]).astype(OFFSET_DTYPE)
    return tensors


def _check_shapes(
    label: str, field: Field, arrays: Sequence[Array], starts: NDArray[np.int64], docs: range
) -> NDArray[np.int64]:
    """Check the shapes of a field's arrays.

    RETURNS: the number of rows of each doc's array, (n_docs,).
    Raises ValueError for a wrong shape.
    """
    if len(arrays) != len(docs):
        raise ValueError(f"{label}: expected arrays of {len(docs)} documents, got {len(arrays)}.")
    for doc, array in zip(docs, arrays, strict=True):
        rows = {"token": int(starts[doc + 1] - starts[doc]), "doc": 1}.get(field.per)
        shape = np.shape(array)
        if len(shape) != 2 or shape[1] != field.width or (rows is not None and shape[0] != rows):
            raise ValueError(
                f"{label} of document {doc}: expected an array of shape "
                f"({'items' if rows is None else rows}, {field.width}), one row per {field.per}, "
                f"got {shape}."
            )
    return np.array([len(array) for array in arrays], dtype=np.int64)


def _pack(label: str, field: Field, arrays: Sequence[Array]) -> Array:
    """Join the rows of all docs, in the number format of the field.

    Numbers too large for a floating-point format become its largest number. With scores, this is
    mostly minus infinity.
    """
    dtype = np.dtype(field.dtype)
    # An array without rows may have any format, and must not change the format of the others.
    filled = [array for array in arrays if len(array)]
    if not filled:
        return np.zeros((0, field.width), dtype)
    rows = np.concatenate(filled)
    if rows.dtype == dtype or np.can_cast(rows.dtype, dtype, "safe"):
        return rows.astype(dtype, copy=False)
    if dtype.kind == "f" and rows.dtype.kind in "iuf":
        largest = float(np.finfo(dtype).max)
        return np.clip(rows, -largest, largest).astype(dtype)
    if dtype.kind in "iu" and rows.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if limits.min <= int(rows.min()) and int(rows.max()) <= limits.max:
            return rows.astype(dtype)
        raise ValueError(
            f"{label}: values from {rows.min()} to {rows.max()} do not fit into {dtype}, which "
            f"holds {limits.min} to {limits.max}."
        )
    raise ValueError(f"{label}: expected values for {dtype}, got {rows.dtype}.")
