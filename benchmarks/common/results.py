"""Saving what a benchmark has found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wasabi import msg

from spacy_distil.report.layout import measured_on
from spacy_distil.report.machine import describe_machine


def save_results(
    output: Path, stem: str, data: Mapping[str, Any], parts: Sequence[str], *, date: str
) -> None:
    """Write STEM.json and STEM.md into a directory, which is made where it is missing. Both say on
    what machine it was measured, and when.

    data: for the JSON file.
    parts: paragraphs of the Markdown file.
    date: ISO 8601.
    """
    machine = describe_machine()
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**data, "machine": machine, "date": date}, indent=2)
    (output / f"{stem}.json").write_text(text + "\n", encoding="utf-8")
    text = "\n\n".join([*parts, measured_on(machine, date)])
    (output / f"{stem}.md").write_text(text + "\n", encoding="utf-8")
    msg.good(f"Saved {stem}.json and {stem}.md to {output}")
