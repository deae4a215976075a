"""`cache.json`: the teacher, the documents and the fields of a cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from spacy_distil.distillation.pipeline.cache.layout import Layout
from spacy_distil.errors import ConfigError
from spacy_distil.runs.files import UNFINISHED, write_text

# The contents of `cache.json`.
State = Mapping[str, Any]

STATE = "cache.json"
# Caches of their own that may lie inside: of whole docs, see `decisions`.
DECISIONS, DEVELOPMENT = "decisions", "development"
DIGEST = "digest"  # its entry with the digest of all others
FORMAT = "spacy-distil teacher cache"
VERSION = 6  # raise it if the same inputs are cut or written differently


def make_state(layout: Layout, fingerprint: Mapping[str, str], sources: Mapping[str, str]) -> State:
    """Describe a cache. See `open_cache` for fingerprint and sources."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": dict(fingerprint),
        "recorded": {
            head: {
                "source": sources.get(head, ""),
                "fields": {name: asdict(field) for name, field in fields.items()},
            }
            for head, fields in layout.fields.items()
            if fields
        },
        "documents": layout.n_docs,
        "tokens": layout.n_tokens,
        "lengths": _digest(np.diff(layout.starts).astype("<i8").tobytes()),
        "shards": layout.bounds,
    }


def identity_of(state: State) -> str:
    """Return a digest of a state, which the shards of the cache carry."""
    return _digest(json.dumps(state, sort_keys=True).encode("utf8"))


def write_state(directory: Path, state: State) -> None:
    written = {**state, DIGEST: identity_of(state)}
    write_text(directory / STATE, json.dumps(written, indent=2) + "\n")


def read_state(directory: Path) -> State | None:
    """Read `cache.json`. RETURNS: None if the directory is missing or empty.

    Raises ConfigError if the directory is not a cache, or the file has changed since it was
    written.
    """
    if not directory.exists():
        return None
    names = os.listdir(directory) if directory.is_dir() else [directory.name]
    if all(name.startswith(UNFINISHED) or name in (DECISIONS, DEVELOPMENT) for name in names):
        return None
    try:
        state = json.loads((directory / STATE).read_text(encoding="utf8"))
    except (OSError, ValueError):
        state = None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ConfigError(
            f"{directory} is not a teacher's cache (or its {STATE} is missing or damaged), and is "
            "not replaced. Delete it yourself, or give another directory as [distillation] cache."
        )
    digest = state.pop(DIGEST, None)
    if state.get("version") == VERSION and digest != identity_of(state):
        raise ConfigError(
            f"{directory / STATE} is damaged (it has changed since it was written). Delete "
            f"{directory}, and the next run makes the teacher's cache again."
        )
    return state


def differences(existing: State, needed: State) -> list[str]:
    """List in words why an existing cache does not serve.

    A cache with more heads than needed serves, whatever the bounds of its shards.
    """
    if existing.get("version") != needed["version"]:
        return ["the format of the cache"]
    old, new = existing["fingerprint"], needed["fingerprint"]
    changed = [part for part in {**new, **old} if old.get(part) != new.get(part)]
    if existing["lengths"] != needed["lengths"]:
        changed.append("the documents")
    recorded = existing["recorded"]
    if any(recorded.get(head) != fields for head, fields in needed["recorded"].items()):
        changed.append("what is recorded")
    return list(dict.fromkeys(changed))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
