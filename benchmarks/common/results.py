"""Printing and saving the results of a benchmark."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from wasabi import msg

from spacy_distil.report.layout import measured_on
from spacy_distil.report.machine import command_line, describe_machine
from spacy_distil.runs.files import write_text
from spacy_distil.tables import Table

# A table, or a paragraph below the tables.
Part = Table | str


def timestamp() -> str:
    """The current date and time, as ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def report_results(
    parts: Sequence[Part], data: Mapping[str, Any], *, output: Path | None, stem: str, date: str
) -> None:
    """Print results and save them as STEM.json and STEM.md, with machine, date and command.

    data: content of the JSON file.
    output: directory, created if it is missing; `None` to save nothing.
    date: when the measurement began, see `timestamp`.
    """
    print_parts(parts)
    if output is not None:
        machine = describe_machine()
        data = {
            **data,
            "command": without_directories(command_line()),
            "machine": machine,
            "date": date,
        }
        save_files([*parts, measured_on(machine, date)], data, output, stem)


def without_directories(command: str) -> str:
    """Leave of absolute paths the last part only: the others are of no use on other machines."""
    return shlex.join(map(_without_directory, shlex.split(command)))


def _without_directory(argument: str) -> str:
    name, equals, path = argument.rpartition("=")
    return f"{name}{equals}{Path(path).name}" if Path(path).is_absolute() else argument


def print_parts(parts: Sequence[Part]) -> None:
    print("\n".join(part.to_text() if isinstance(part, Table) else part for part in parts))


def save_files(parts: Sequence[Part], data: Mapping[str, Any], output: Path, stem: str) -> None:
    """Write STEM.json and STEM.md into a directory, which is created if it is missing."""
    texts = [part.to_markdown() if isinstance(part, Table) else part for part in parts]
    write_text(output / f"{stem}.json", json.dumps(data, indent=2) + "\n")
    write_text(output / f"{stem}.md", "\n\n".join(texts) + "\n")
    msg.good(f"Saved {stem}.json and {stem}.md to {output}")
