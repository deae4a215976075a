"""Computing a cache, going on with it, using it, refusing or replacing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from tqdm import tqdm  # type: ignore[import-untyped]
from wasabi import msg

from spacy_distil.distillation.pipeline.cache.layout import ITEMS_PER_TOKEN, Fields, Layout
from spacy_distil.distillation.pipeline.cache.reader import TeacherCache
from spacy_distil.distillation.pipeline.cache.recording import Record, record_shard
from spacy_distil.distillation.pipeline.cache.shards import (
    SHARDS,
    map_shard,
    shard_path,
    write_shard,
)
from spacy_distil.distillation.pipeline.cache.state import (
    STATE,
    differences,
    identity_of,
    make_state,
    read_state,
    write_state,
)
from spacy_distil.errors import ConfigError
from spacy_distil.runs.files import STALE_AFTER, free_bytes, remove_unfinished
from spacy_distil.tables import megabytes


def open_cache(
    directory: Path,
    *,
    fingerprint: Mapping[str, str],
    fields: Fields,
    lengths: Sequence[int],
    record: Record,
    sources: Mapping[str, str] | None = None,
    force: bool = False,
) -> TeacherCache:
    """The cache in `directory`, after what is missing of it has been computed.

    fingerprint: of each thing that the recorded values depend on, by words for it such as
        "the teacher" or "the documents".
    fields: what is recorded, by head and name.
    lengths: tokens of each doc.
    record: records docs, some thousands of tokens at a time, in their order.
    sources: what each head's values are of, beyond what their shapes tell: such as the teacher's
        pipe or layers, or the order of labels. "" for those that are not named.
    force: replace a cache of something else, and damaged shards. A cache that fits is used,
        and so is one that has heads besides those of `fields`.

    Several processes may fill the same cache at once: each computes what it found missing.

    Raises ConfigError where there is a cache of something else, or not a cache at all, or where
    the disk has no room.
    """
    layout = Layout.of(fields, lengths)
    state = make_state(layout, fingerprint, sources or {})
    cache = TeacherCache(directory, layout, identity_of(state))
    if layout.is_empty:
        return cache
    there = read_state(directory)
    changed = [] if there is None else differences(there, state)
    missing = list(range(layout.n_shards))
    if there is not None and not changed:
        found = TeacherCache(directory, replace(layout, bounds=there["shards"]), identity_of(there))
        missing = _missing(found, force)
        if not missing:
            msg.info(f"Using the teacher's cache in {directory}: {_summary(layout, found.n_bytes)}")
            return found
        if there["recorded"] != state["recorded"]:
            # It holds more than is wanted: as good while complete, but not to be gone on with.
            changed, missing = ["what is recorded"], list(range(layout.n_shards))
    if changed and not force:
        raise ConfigError(
            f"The teacher's cache in {directory} is of something else. Changed since it was made: "
            f"{', '.join(changed)}. Replace it with --force, or give another directory as "
            "[distillation] cache."
        )
    _announce(cache, missing)
    with _writing(cache, missing):
        directory.mkdir(parents=True, exist_ok=True)
        remove_unfinished(directory, older_than=STALE_AFTER)
        stale = [*directory.glob(SHARDS)] if changed else []
        _check_room(cache, missing, gained=sum(map(_size_of, stale)))
        # `cache.json` goes last: until then, the cache is known to be ours, and another one.
        for path in stale:
            path.unlink(missing_ok=True)
        write_state(directory, state)
    while missing:
        _fill(cache, missing, record)
        # Whoever replaced the same old cache at the same time may have taken new shards for old.
        paths = [shard_path(directory, shard) for shard in range(layout.n_shards)]
        missing = [shard for shard, path in enumerate(paths) if not path.exists()]
    return cache


def _size_of(path: Path) -> int:
    """Size of a file that somebody else may be deleting, too."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _missing(cache: TeacherCache, force: bool) -> list[int]:
    """The shards that are not there; with `force`, those that are damaged, too."""
    missing = []
    for shard in range(cache.layout.n_shards):
        path = shard_path(cache.directory, shard)
        if not path.exists():
            missing.append(shard)
            continue
        try:
            map_shard(path, cache.layout, shard, cache.identity)
        except ConfigError:
            if not force:
                raise
            missing.append(shard)
    return missing


def _fill(cache: TeacherCache, missing: Sequence[int], record: Record) -> None:
    """Compute and write the shards that are missing."""
    directory, layout = cache.directory, cache.layout
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
            tensors = record_shard(layout, layout.docs(shard), record, bar.update)
            with _writing(cache, missing[done:]):
                path = shard_path(directory, shard)
                write_shard(path, tensors, cache.identity, mode_of=directory / STATE)


# Messages


def _announce(cache: TeacherCache, missing: Sequence[int]) -> None:
    layout = cache.layout
    text = f"The teacher's cache in {cache.directory}: {_summary(layout, layout.n_bytes())} on disk"
    if layout.is_estimated:
        text += f", at a guess of {ITEMS_PER_TOKEN} items a token"
    if len(missing) < layout.n_shards:
        left = megabytes(layout.n_bytes(missing))
        text += f"; {left} of it to go, in {len(missing)} of {layout.n_shards} shards"
    msg.info(text)


def _check_room(cache: TeacherCache, missing: Sequence[int], *, gained: int) -> None:
    """Raise ConfigError where the disk has no room. gained: bytes that are deleted before."""
    needed = cache.layout.n_bytes(missing)
    free = free_bytes(cache.directory) + gained
    if free < needed:
        raise ConfigError(
            f"The teacher's cache needs {megabytes(needed)} more, but the disk of "
            f"{cache.directory} has {megabytes(free)} free. Give a directory on another disk as "
            "[distillation] cache, or fewer documents, or do not learn hidden states, which take "
            "most of the space."
        )


@contextmanager
def _writing(cache: TeacherCache, missing: Sequence[int]) -> Iterator[None]:
    """Turn what the system raises about a file, such as a full disk, into a `ConfigError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        n_shards = cache.layout.n_shards
        raise ConfigError(
            f"The teacher's cache in {cache.directory} cannot be written: {error}. "
            f"{n_shards - len(missing)} of {n_shards} shards are complete, and stay: make room "
            "there, and the next run goes on after them, or give another directory as "
            "[distillation] cache."
        ) from error


def _summary(layout: Layout, n_bytes: int) -> str:
    return f"{layout.n_docs:,} documents, {layout.n_tokens:,} tokens, {megabytes(n_bytes)}"
