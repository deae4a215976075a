"""Opening a cache: using, filling, refusing or replacing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

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
from spacy_distil.errors import ConfigError, WriteError
from spacy_distil.runs.files import STALE_AFTER, explain_write_errors, free_bytes, remove_unfinished
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
    shard_tokens: int | None = None,
) -> TeacherCache:
    """Open the cache in `directory`, and compute all shards that it lacks.

    fingerprint: digests of everything that the records depend on, by words such as "the teacher" or
        "the documents".
    fields: the fields by head and name.
    lengths: number of tokens of each doc.
    record: records docs in their order, some thousands of tokens at a time.
    sources: the origin of each head's records beyond their shapes, such as the teacher's pipe or
        layers, or the order of labels. "" for heads that are not named.
    force: replace a cache of other contents, and damaged shards. A cache that fits is used, even if
        it has more heads than `fields`.
    shard_tokens: the most tokens in a shard, None for the default. Work on a shard is lost if the
        process is killed.

    Several processes may fill the same cache at once. Each computes the shards that it missed.

    Raises ConfigError if the directory has a cache of other contents or is not a cache, or if the
    disk is too small.
    """
    layout = Layout.of(fields, lengths, shard_tokens)
    state = make_state(layout, fingerprint, sources or {})
    cache = TeacherCache(directory, layout, identity_of(state))
    if layout.is_empty:
        return cache
    existing = read_state(directory)
    changed = [] if existing is None else differences(existing, state)
    missing = list(range(layout.n_shards))
    if existing is not None and not changed:
        existing_layout = replace(layout, bounds=existing["shards"])
        usable = TeacherCache(directory, existing_layout, identity_of(existing))
        unusable = _missing(usable, force)
        if not unusable:
            summary = _summary(layout, usable.n_bytes)
            msg.info(f"Using the teacher's cache in {directory}: {summary}")
            return usable
        if existing["recorded"] == state["recorded"]:
            # Its shards may be of another size.
            cache, layout, state, missing = usable, existing_layout, existing, unusable
        else:
            # It has more heads than needed. This run cannot record them, so it cannot fill it.
            changed = ["what is recorded"]
    if changed and not force:
        raise ConfigError(
            f"The teacher's cache in {directory} has other contents. Changed since it was made: "
            f"{', '.join(changed)}. Replace it with --force, or give another directory as "
            "[distillation] cache."
        )
    _announce(cache, missing)
    with _writing(cache, missing):
        directory.mkdir(parents=True, exist_ok=True)
        remove_unfinished(directory, older_than=STALE_AFTER)
        stale = [*directory.glob(SHARDS)] if changed else []
        _check_room(cache, missing, gained=sum(map(_size_of, stale)))
        # `cache.json` goes last: until then it marks the directory as another cache of ours.
        for path in stale:
            path.unlink(missing_ok=True)
        write_state(directory, state)
    while missing:
        _fill(cache, missing, record)
        # Another process that replaced the same cache may have deleted new shards as stale ones.
        paths = [shard_path(directory, shard) for shard in range(layout.n_shards)]
        missing = [shard for shard, path in enumerate(paths) if not path.exists()]
    return cache


def _size_of(path: Path) -> int:
    """Return the size of a file that another process may have deleted."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _missing(cache: TeacherCache, force: bool) -> list[int]:
    """List the absent shards and, with `force`, the damaged ones."""
    missing = []
    for shard in range(cache.layout.n_shards):
        path = shard_path(cache.directory, shard)
        if not path.exists():
            missing.append(shard)
            continue
        try:
            # Otherwise its values are checked when they are first read.
            map_shard(path, cache.layout, shard, cache.identity, check_values=force)
        except ConfigError:
            if not force:
                raise
            missing.append(shard)
    return missing


def _fill(cache: TeacherCache, missing: Sequence[int], record: Record) -> None:
    """Compute and write missing shards."""
    directory, layout = cache.directory, cache.layout
    left = sum(layout.tokens(layout.docs(shard)) for shard in missing)
    with tqdm(
        desc="Teacher",
        total=layout.n_tokens,
        initial=layout.n_tokens - left,
        unit=" tokens",
        unit_scale=True,
        leave=False,
        disable=None,  # shows the bar only on terminals
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
        text += f", if a token has {ITEMS_PER_TOKEN} items in the mean"
    if len(missing) < layout.n_shards:
        left = megabytes(layout.n_bytes(missing))
        text += f"; {left} of it are missing, in {len(missing)} of {layout.n_shards} shards"
    msg.info(text)


def _check_room(cache: TeacherCache, missing: Sequence[int], *, gained: int) -> None:
    """Raise ConfigError if the disk is too small.

    gained: bytes that will be deleted first.
    """
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
    """Tell after a `WriteError` how much of the cache is kept, and how to go on."""
    try:
        with explain_write_errors(cache.directory, needed=cache.layout.n_bytes(missing)):
            yield
    except WriteError as error:
        n_shards = cache.layout.n_shards
        raise error.with_advice(
            f"{n_shards - len(missing)} of {n_shards} shards of the teacher's cache are complete, "
            "and stay",
            "go on with --resume. Or give a directory on another disk as [distillation] cache",
        ) from error.__cause__


def _summary(layout: Layout, n_bytes: int) -> str:
    return f"{layout.n_docs:,} documents, {layout.n_tokens:,} tokens, {megabytes(n_bytes)}"
