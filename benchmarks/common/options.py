"""Arguments and options that several benchmarks have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

import typer

from spacy_distil.errors import ConfigError

Docs = Annotated[Path, typer.Argument(metavar="DOCS.spacy", help="Annotated documents")]
Encoder = Annotated[Path, typer.Argument(help="Hugging Face model directory", exists=True)]
Test = Annotated[Path, typer.Argument(metavar="TEST.spacy", help="Test documents")]
Keys = Annotated[str, typer.Option(help="Keys, separated by commas; empty for all")]
Limit = Annotated[int, typer.Option(help="Number of documents; 0 for all", min=0)]
Repeats = Annotated[
    int, typer.Option(help="Number of rounds. Every second round runs in reverse order", min=1)
]
Threads = Annotated[int, typer.Option(help="Number of threads of each process", min=1)]
BatchSize = Annotated[int, typer.Option(help="Number of documents per batch", min=1)]
Output = Annotated[Path, typer.Option(help="Directory for the results, as .json and .md")]
OptionalOutput = Annotated[
    Path | None, typer.Option(help="Directory for the results, as .json and .md")
]
Stem = Annotated[str, typer.Option(help="Name of the .json and the .md file")]
Quantize = Annotated[str, typer.Option(help="Further arguments of `spacy distil quantize`")]
Seed = Annotated[int, typer.Option(help="Random seed")]
# Of the two ablations, whose rows are students made by different recipes.
RowsDirectory = Annotated[Path, typer.Argument(metavar="OUT", help="Directory of all rows")]
Seeds = Annotated[str, typer.Option(help="Seeds, separated by commas")]
DryRun = Annotated[bool, typer.Option(help="Only print the commands")]


def choose_keys(keys: str, known: Sequence[str], *, option: str) -> list[str]:
    """Read the keys that a user has chosen.

    keys: separated by commas; empty for all.
    known: all keys.
    option: name of the option, for the error.
    RETURNS: the chosen keys, in the order of `known`.
    """
    chosen = {key.strip() for key in keys.split(",") if key.strip()}
    if unknown := chosen.difference(known):
        raise ConfigError(
            f"--{option} {', '.join(sorted(unknown))}: expected some of {', '.join(known)}."
        )
    return [key for key in known if key in (chosen or known)]


class Keyed(Protocol):
    """A row that users choose by its key."""

    @property
    def key(self) -> str: ...


R = TypeVar("R", bound=Keyed)


def choose_rows(keys: str, rows: Sequence[R]) -> list[R]:
    """Choose rows by --rows, in the order of `rows`. For `keys` see `choose_keys`."""
    by_key = {row.key: row for row in rows}
    return [by_key[key] for key in choose_keys(keys, list(by_key), option="rows")]
