"""`cache.json`: of what teacher and documents a cache is, and what is recorded."""

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

# What `cache.json` holds.
State = Mapping[str, Any]

STATE = "cache.json"
FORMAT = "spacy-distil teacher cache"
VERSION = 2  # raise it when the same inputs are cut or written in another way


def make_state(layout: Layout, fingerprint: Mapping[str, str], sources: Mapping[str, str]) -> State:
    """fingerprint, sources: see `open_cache`."""
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
    """A short name for a cache, which its shards carry: the same for the same state."""
    return _digest(json.dumps(state, sort_keys=True).encode("utf8"))


def write_state(directory: Path, state: State) -> None:
    write_text(directory / STATE, json.dumps(state, indent=2) + "\n")


def read_state(directory: Path) -> State | None:
    """What an existing `cache.json` holds; None where the directory is missing or empty.

    Raises ConfigError where something else lies there.
    """
    if not directory.exists():
        return None
    if directory.is_dir() and all(name.startswith(UNFINISHED) for name in os.listdir(directory)):
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


def differences(there: State, state: State) -> list[str]:
    """In words, what a cache is of that is not what is wanted.

    One that has more heads is the same: its shards are cut as they all need it.
    """
    old, new = there.get("fingerprint") or {}, state["fingerprint"]
    changed = [part for part in {**new, **old} if old.get(part) != new.get(part)]
    if there.get("lengths") != state["lengths"]:
        changed.append("the documents")
    if there.get("version") != state["version"]:
        changed.append("the format of the cache")  # and what is recorded is not to be compared
        return list(dict.fromkeys(changed))
    recorded = there["recorded"]
    if any(recorded.get(head) != one for head, one in state["recorded"].items()):
        changed.append("what is recorded")
    if not changed and recorded == state["recorded"] and there["shards"] != state["shards"]:
        changed.append("the format of the cache")
    return list(dict.fromkeys(changed))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
