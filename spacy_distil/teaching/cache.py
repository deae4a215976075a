"""What a teacher makes of a corpus: computed once, read from memory-mapped shards.

A cache is a directory:

    cache.json                   of what teacher and documents it is, and what is recorded
    shard-00000.safetensors ...  about 50,000 tokens each: for each field of each head the rows of
                                 all its documents behind one another, (rows, width)

A shard is written elsewhere and then renamed, so that those that are there are complete, and a run
that was interrupted goes on after them. Shards are mapped, not read: a batch costs the pages that
it lies on, whatever the size of the cache.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file
from tqdm import tqdm  # type: ignore[import-untyped]
from wasabi import msg

from spacy_distil.errors import ConfigError
from spacy_distil.teaching.heads.base import Array, Field, Records

Fields = Mapping[str, Mapping[str, Field]]
# From numbers of docs to what is recorded of them: head -> field -> an array for each doc.
Record = Callable[[range], Mapping[str, Mapping[str, Sequence[Array]]]]

STATE = "cache.json"
UNFINISHED = ".unfinished"  # where a file grows before it gets its name
SHARDS = "shard-*.safetensors"
FORMAT = "spacy-distil teacher cache"
VERSION = 1  # raise it when the same inputs are cut or written in another way
SHARD_TOKENS = 50_000
BATCH_TOKENS = 5_000  # what the teacher is given at once
ITEMS_PER_TOKEN = 2  # a guess, for the prediction of the size
OPEN_SHARDS = 256  # each holds a file descriptor, of which a process may often have 1,024
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
        for head, name, field in _each(fields):
            if not _code(field.dtype):
                raise ValueError(
                    f"{head}.{name}: dtype = {field.dtype!r} cannot be cached. Expected an integer "
                    "or floating-point format of at most 64 bits."
                )
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        return cls(fields, starts, _cut(starts, 0, len(lengths), SHARD_TOKENS))

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
    def is_estimated(self) -> bool:
        """Whether the size depends on a number of items that is not known beforehand."""
        return any(field.per == "item" for _, _, field in _each(self.fields))

    def docs(self, shard: int) -> range:
        """Numbers of the docs in a shard."""
        return range(self.bounds[shard], self.bounds[shard + 1])

    def tokens(self, docs: range) -> int:
        """Number of tokens in these docs."""
        return int(self.starts[docs.stop] - self.starts[docs.start])

    def rows(self, field: Field, docs: range) -> int:
        """Rows of a field in these docs; of items, an estimate."""
        if field.per == "doc":
            return len(docs)
        return self.tokens(docs) * (ITEMS_PER_TOKEN if field.per == "item" else 1)

    def n_bytes(self, shard: int) -> int:
        """Predicted size of a shard on disk."""
        docs = self.docs(shard)
        size = 0
        for _, _, field in _each(self.fields):
            size += self.rows(field, docs) * field.width * np.dtype(field.dtype).itemsize
            if field.per == "item":
                size += (len(docs) + 1) * np.dtype(OFFSET_DTYPE).itemsize
        return size

    def state(self, fingerprint: Mapping[str, str]) -> dict[str, Any]:
        """What `cache.json` holds."""
        lengths = np.diff(self.starts).astype("<i8").tobytes()
        return {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": dict(fingerprint),
            "recorded": {
                head: {name: asdict(field) for name, field in fields.items()}
                for head, fields in self.fields.items()
            },
            "documents": self.n_docs,
            "tokens": self.n_tokens,
            "lengths": hashlib.blake2b(lengths, digest_size=16).hexdigest(),
            "shards": self.bounds,
        }


class TeacherCache:
    """What was recorded of each doc.

    Processes may share one: it can be pickled, and holds nothing that a fork would break.
    """

    def __init__(self, directory: Path, layout: Layout) -> None:
        self.directory = directory
        self.layout = layout
        self._shard = lru_cache(maxsize=OPEN_SHARDS)(self._map)

    def read(self, docs: Sequence[int]) -> dict[str, Records]:
        """What was recorded of these docs, by head: for each field an array for each doc, in the
        order asked for, (rows, width).

        docs: their numbers. The arrays are views of the files, and cannot be written to.
        """
        layout = self.layout
        numbers = np.asarray(docs, dtype=np.int64)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < layout.n_docs:
            raise IndexError(f"Expected documents from 0 to {layout.n_docs - 1}, got {docs}.")
        records: dict[str, dict[str, list[Array]]] = {
            head: {name: [] for name in fields} for head, fields in layout.fields.items()
        }
        if not any(layout.fields.values()):
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
        """Size on disk."""
        if not any(self.layout.fields.values()):
            return 0
        shards = range(self.layout.n_shards)
        return sum(_path(self.directory, shard).stat().st_size for shard in shards)

    def _map(self, shard: int) -> list[tuple[str, str, str, Array, Array]]:
        return list(_map_shard(_path(self.directory, shard), self.layout, shard))

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory, "layout": self.layout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def predict_bytes(fields: Fields, lengths: Sequence[int]) -> int:
    """Size on disk of a cache. See `open_cache`.

    Exact but for a few hundred bytes a shard, if there are no items; else an estimate.
    """
    layout = Layout.of(fields, lengths)
    return sum(map(layout.n_bytes, range(layout.n_shards)))


def open_cache(
    directory: Path,
    *,
    fingerprint: Mapping[str, str],
    fields: Fields,
    lengths: Sequence[int],
    record: Record,
    overwrite: bool = False,
) -> TeacherCache:
    """The cache in `directory`, after what is missing of it has been computed.

    fingerprint: of each thing that the recorded values depend on, by words for it such as
        "the teacher" or "the documents".
    fields: what is recorded, by head and name.
    lengths: tokens of each doc.
    record: records docs, about `BATCH_TOKENS` tokens at a time, in their order.
    overwrite: replace a cache of something else, and damaged shards. A cache that fits is used,
        and so is one that has heads besides those of `fields`.

    Raises ConfigError where there is a cache of something else, or not a cache at all, or where
    the disk has no room.
    """
    layout = Layout.of(fields, lengths)
    if not any(fields.values()):
        return TeacherCache(directory, layout)
    state = layout.state(fingerprint)
    there = _read_state(directory)
    changed = [] if there is None else _differences(there, state)
    if there and not changed and there["recorded"] != state["recorded"]:
        # It holds more than is wanted: as good, if it is complete, but not to be gone on with.
        changed = ["what is recorded"] if _missing(directory, layout, overwrite) else []
    if changed and not overwrite:
        raise ConfigError(
            f"The teacher's cache in {directory} is of something else. Changed since it was made: "
            f"{', '.join(changed)}. Replace it with --overwrite, or give another directory as "
            "[distillation] cache."
        )
    fits = there is not None and not changed
    missing = _missing(directory, layout, overwrite) if fits else list(range(layout.n_shards))
    cache = TeacherCache(directory, layout)
    if fits and not missing:
        msg.info(f"Using the teacher's cache in {directory}: {_summary(layout, cache.n_bytes)}")
        return cache
    _announce(directory, layout, missing)
    with _writing(directory, layout, missing):
        directory.mkdir(parents=True, exist_ok=True)
        stale = [*directory.glob(SHARDS)] if changed else []
        _check_room(directory, layout, missing, gained=sum(path.stat().st_size for path in stale))
        # `cache.json` goes last: until then, the cache is known to be ours, and another one.
        for path in stale:
            path.unlink()
        _write_state(directory, state)
    _fill(directory, layout, missing, record)
    return cache


def _fill(directory: Path, layout: Layout, missing: Sequence[int], record: Record) -> None:
    """Compute and write the shards that are missing."""
    left = sum(layout.tokens(layout.docs(shard)) for shard in missing)
    with tqdm(
        desc="Teacher",
        total=layout.n_tokens,
        initial=layout.n_tokens - left,
        unit=" tokens",
        unit_scale=True,
        leave=False,
        disable=None,  # shows the bar on terminals only
    ) as bar:
        for done, shard in enumerate(missing):
            tensors = _compute(layout, layout.docs(shard), record, bar.update)
            with _writing(directory, layout, missing[done:]):
                _write_shard(_path(directory, shard), tensors)
    shutil.rmtree(directory / UNFINISHED, ignore_errors=True)


def _compute(
    layout: Layout, docs: range, record: Record, advance: Callable[[int], Any]
) -> dict[str, Array]:
    """The tensors of a shard, by name. advance: is told the number of tokens of each batch."""
    parts: dict[str, list[Array]] = defaultdict(list)
    for start, stop in pairwise(_cut(layout.starts, docs.start, docs.stop, BATCH_TOKENS)):
        batch = range(start, stop)
        recorded = record(batch)
        for head, fields in layout.fields.items():
            arrays = recorded.get(head, {})
            if set(arrays) != set(fields):
                raise ValueError(
                    f"{head}: expected the fields {sorted(fields)}, got {sorted(arrays)}."
                )
            for name, field in fields.items():
                where = f"{head}.{name}"
                counts = _check_shapes(where, field, arrays[name], layout.starts, batch)
                parts[_key(head, name)].append(_packed(where, field, arrays[name]))
                if field.per == "item":
                    parts[_offsets_key(head, name)].append(counts)
        advance(layout.tokens(batch))
    tensors = {}
    for key in list(parts):
        tensors[key] = np.concatenate(parts.pop(key))  # popped: one of them is there twice at most
    for head, name, field in _each(layout.fields):
        if field.per == "item":
            key = _offsets_key(head, name)
            tensors[key] = np.concatenate([[0], np.cumsum(tensors[key])]).astype(OFFSET_DTYPE)
    return tensors


def _check_shapes(
    where: str, field: Field, arrays: Sequence[Array], starts: NDArray[np.int64], docs: range
) -> NDArray[np.int64]:
    """Rows of each doc's array, (n_docs,). Raises ValueError where a shape is wrong."""
    if len(arrays) != len(docs):
        raise ValueError(f"{where}: expected arrays of {len(docs)} documents, got {len(arrays)}.")
    for doc, array in zip(docs, arrays, strict=True):
        rows = {"token": int(starts[doc + 1] - starts[doc]), "doc": 1}.get(field.per)
        shape = np.shape(array)
        if len(shape) != 2 or shape[1] != field.width or (rows is not None and shape[0] != rows):
            raise ValueError(
                f"{where} of document {doc}: expected an array of shape "
                f"({'items' if rows is None else rows}, {field.width}), one row per {field.per}, "
                f"got {shape}."
            )
    return np.array([len(array) for array in arrays], dtype=np.int64)


def _packed(where: str, field: Field, arrays: Sequence[Array]) -> Array:
    """The rows of all docs in the number format of the disk.

    What is too large for a floating-point format becomes its largest number: of scores, minus
    infinity is the most common.
    """
    dtype = np.dtype(field.dtype)
    # Those without rows may be of any format, and must not decide about that of the others.
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
            f"{where}: values from {rows.min()} to {rows.max()} do not fit into {dtype}, which "
            f"holds {limits.min} to {limits.max}."
        )
    raise ValueError(f"{where}: expected values for {dtype}, got {rows.dtype}.")


# Files


def _write_shard(path: Path, tensors: dict[str, Array]) -> None:
    with _renamed(path) as unfinished:
        save_file(tensors, unfinished)
        # The library's files are for the owner's eyes only, whatever the umask.
        shutil.copymode(path.parent / STATE, unfinished)


def _write_state(directory: Path, state: Mapping[str, Any]) -> None:
    with _renamed(directory / STATE) as unfinished:
        unfinished.write_text(json.dumps(state, indent=2) + "\n", encoding="utf8")


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """Where to write a file that gets its name when it is complete, and on the disk.

    A directory of its own, because safetensors has temporary files beside the one it writes.
    """
    scratch = path.parent / UNFINISHED
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    yield scratch / path.name
    with (scratch / path.name).open("r+b") as file:
        os.fsync(file.fileno())
    os.replace(scratch / path.name, path)


def _read_state(directory: Path) -> dict[str, Any] | None:
    """What an existing `cache.json` holds; None where the directory is missing or empty.

    Raises ConfigError where something else lies there.
    """
    if directory.is_dir() and not set(os.listdir(directory)) - {UNFINISHED}:
        return None
    if not directory.exists():
        return None
    try:
        state = json.loads((directory / STATE).read_text(encoding="utf8"))
    except (OSError, ValueError):
        state = None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ConfigError(
            f"What lies at {directory} is not a teacher's cache (or its {STATE} is missing or "
            "damaged), and is not replaced. Delete it yourself, or give another directory as "
            "[distillation] cache."
        )
    return state


def _differences(there: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """In words, what a cache is of that is not what is wanted."""
    old, new = there.get("fingerprint") or {}, state["fingerprint"]
    changed = [part for part in {**new, **old} if old.get(part) != new.get(part)]
    if there.get("lengths") != state["lengths"]:
        changed.append("the documents")
    recorded = there.get("recorded", {})
    if any(recorded.get(head) != fields for head, fields in state["recorded"].items()):
        changed.append("what is recorded")
    if there.get("version") != state["version"] or (
        not changed and there.get("shards") != state["shards"]
    ):
        changed.append("the format of the cache")
    return list(dict.fromkeys(changed))


def _missing(directory: Path, layout: Layout, overwrite: bool) -> list[int]:
    """The shards that are not there; with `overwrite`, those that are damaged, too."""
    missing = []
    for shard in range(layout.n_shards):
        path = _path(directory, shard)
        if not path.exists():
            missing.append(shard)
            continue
        try:
            for _ in _map_shard(path, layout, shard):
                pass
        except ConfigError:
            if not overwrite:
                raise
            missing.append(shard)
    return missing


def _map_shard(
    path: Path, layout: Layout, shard: int
) -> Iterator[tuple[str, str, str, Array, Array]]:
    """Head, name, what a row stands for, rows and, of items, first row of each doc, of each field.

    Raises ConfigError where the file is not what it should be. The safetensors library has slices,
    too, but at some microseconds each, which small docs make thousands of in a second, and none of
    an array without rows.
    """
    docs = layout.docs(shard)
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        none = np.zeros(0, OFFSET_DTYPE)
        for head, name, field in _each(layout.fields):
            rows = _tensor(data, start, header, _key(head, name), field.dtype)
            offsets, n_rows = none, layout.rows(field, docs)
            if field.per == "item":
                offsets = _tensor(data, start, header, _offsets_key(head, name), OFFSET_DTYPE)
                if offsets.shape != (len(docs) + 1,):
                    raise ValueError(f"{head}.{name} is of {len(offsets) - 1} documents")
                n_rows = int(offsets[-1])
            if rows.shape != (n_rows, field.width):
                raise ValueError(
                    f"{head}.{name} has shape {rows.shape}, expected {(n_rows, field.width)}"
                )
            yield head, name, field.per, rows, offsets
    except OSError as error:
        raise ConfigError(
            f"A part of the teacher's cache cannot be read: {error}. If the file is missing, the "
            "next run computes it again."
        ) from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{path} is damaged ({error}). Delete it, and the next run computes this part of the "
            "teacher's cache again; --overwrite does both."
        ) from error


def _tensor(data: mmap.mmap, start: int, header: Mapping[str, Any], key: str, dtype: str) -> Array:
    """A view of a tensor. start: of the bytes that the header's offsets count from."""
    entry = header[key]
    if entry["dtype"] != _code(dtype):
        raise ValueError(f"{key} is {entry['dtype']}, expected {_code(dtype)}")
    offset = start + entry["data_offsets"][0]
    return np.ndarray(tuple(entry["shape"]), np.dtype(dtype).newbyteorder("<"), data, offset)


def _code(dtype: str) -> str | None:
    """The name of a number format in safetensors files; None where it has none."""
    kind, size = np.dtype(dtype).kind, np.dtype(dtype).itemsize
    return f"{kind.upper()}{8 * size}" if kind in "fiu" and size <= 8 else None


def _path(directory: Path, shard: int) -> Path:
    return directory / SHARDS.replace("*", f"{shard:05}")


def _key(head: str, name: str) -> str:
    return f"{head}/{name}"


def _offsets_key(head: str, name: str) -> str:
    return f"{head}/{name}/offsets"


def _each(fields: Fields) -> Iterator[tuple[str, str, Field]]:
    for head, own in fields.items():
        for name, field in own.items():
            yield head, name, field


def _cut(starts: NDArray[np.int64], first: int, last: int, n_tokens: int) -> list[int]:
    """Where to cut docs into runs of at most `n_tokens` tokens, or of one doc that has more.

    starts: number of tokens before each doc.
    RETURNS: the first doc of each run, and `last`.
    """
    bounds = [first]
    while bounds[-1] < last:
        start = bounds[-1]
        stop = int(np.searchsorted(starts, starts[start] + n_tokens, side="right")) - 1
        bounds.append(min(max(stop, start + 1), last))
    return bounds


# Messages


def _announce(directory: Path, layout: Layout, missing: Sequence[int]) -> None:
    size = sum(map(layout.n_bytes, range(layout.n_shards)))
    text = f"The teacher's cache in {directory}: {_summary(layout, size)} on disk"
    if layout.is_estimated:
        text += f", at a guess of {ITEMS_PER_TOKEN} items a token"
    if len(missing) < layout.n_shards:
        left = sum(map(layout.n_bytes, missing))
        text += f"; {_size(left)} of it to go, in {len(missing)} of {layout.n_shards} shards"
    msg.info(text)


def _check_room(directory: Path, layout: Layout, missing: Sequence[int], *, gained: int) -> None:
    """Raise ConfigError where the disk has no room. gained: bytes that are deleted before."""
    needed = sum(map(layout.n_bytes, missing))
    free = shutil.disk_usage(directory).free + gained
    if free < needed:
        raise ConfigError(
            f"The teacher's cache needs {_size(needed)} more, but the disk of {directory} has "
            f"{_size(free)} free. Give a directory on another disk as [distillation] cache, fewer "
            "documents, or leave out the hidden states, which are most of it where they are "
            "recorded."
        )


@contextmanager
def _writing(directory: Path, layout: Layout, missing: Sequence[int]) -> Iterator[None]:
    """Turn what the system raises about a file, such as a full disk, into a `ConfigError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(directory / UNFINISHED, ignore_errors=True)
        raise ConfigError(
            f"The teacher's cache in {directory} cannot be written: {error}. "
            f"{layout.n_shards - len(missing)} of {layout.n_shards} shards are complete, and stay: "
            "make room there, and the next run goes on after them, or give another directory as "
            "[distillation] cache."
        ) from error


def _summary(layout: Layout, n_bytes: int) -> str:
    return f"{layout.n_docs:,} documents, {layout.n_tokens:,} tokens, {_size(n_bytes)}"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"
