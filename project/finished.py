"""Records of finished work, so that a second run can skip it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spacy_distil.runs.files import write_text

FINISHED = "finished.json"


def is_finished(directory: Path, record: dict[str, Any]) -> bool:
    """Whether the content of a directory is complete and was made as `record` says."""
    path = directory / FINISHED
    return path.is_file() and json.loads(path.read_text(encoding="utf8")) == record


def finish(directory: Path, record: dict[str, Any]) -> None:
    """Record that a directory is complete, and how it was made."""
    write_text(directory / FINISHED, json.dumps(record, indent=2) + "\n")
