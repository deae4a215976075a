"""The commands that make a row of an ablation, and the pipelines that they leave."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from thinc.api import Config
from wasabi import msg
from weasel.util import get_checksum

from project.finished import FINISHED, finish, is_finished
from spacy_distil.errors import ConfigError
from spacy_distil.runs.files import write_text

Row = TypeVar("Row")


@dataclass(frozen=True)
class Command:
    """A command that runs once.

    arguments: of `python -m`.
    output, inputs: the command is skipped if a record in `output` says that this command has made
        it from these files. A command without an output knows by itself what is done.
    """

    arguments: tuple[str, ...]
    output: Path | None = None
    inputs: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return shlex.join(("python", "-m", *self.arguments))

    def run(self) -> None:
        record = {
            "command": list(self.arguments),
            "inputs": {str(path): get_checksum(path) for path in self.inputs},
        }
        if self.output is not None and is_finished(self.output, record):
            msg.info(f"{self.output} is finished already")
            return
        print(self, flush=True)  # on one line, to be copied
        subprocess.run([sys.executable, "-m", *self.arguments], check=True)
        if self.output is not None:
            finish(self.output, record)


def run_all(commands: Sequence[Command], *, dry_run: bool) -> None:
    """Run commands, or only print them."""
    for command in commands:
        if dry_run:
            print(command)
        else:
            command.run()


def start_student(
    source: str, encoder: Path, output: Path, n_layers: int, inputs: Sequence[Path]
) -> Command:
    """The command that makes the encoder a student starts from.

    source: "teacher", the first layers of an encoder, or "distilled", a distilled encoder as it is.
    inputs: the files of `encoder` that matter.
    """
    arguments = ["scripts.start_student", source, str(output), f"--{source}", str(encoder)]
    arguments += ["--layers", "first", "--n-layers", str(n_layers)]
    return Command(tuple(arguments), output, tuple(inputs))


def train(
    config: Path,
    output: Path,
    corpus: Path,
    *,
    epochs: float,
    seed: int,
    options: Sequence[str] = (),
) -> Command:
    """The command that trains one seed with `spacy train`. It skips a finished seed by itself."""
    arguments = ["scripts.train", str(config), str(output), "--corpus", str(corpus)]
    arguments += ["--epochs", str(epochs), "--seeds", str(seed), *options]
    return Command(tuple(arguments))


def write_config(config: Config, output: Path, name: str) -> Path:
    """Write the config of a row. RETURNS: its path."""
    path = output / "configs" / f"{name}.cfg"
    write_text(path, config.to_str())
    return path


def choose(rows: Mapping[str, Row], names: Sequence[str]) -> list[Row]:
    """The rows of these names. rows: all rows, by name."""
    if unknown := [name for name in names if name not in rows]:
        raise ConfigError(f"No row {', '.join(unknown)}. Rows: {', '.join(rows)}")
    return [rows[name] for name in names]


def finished_seeds(directory: Path) -> dict[int, Path]:
    """Find the trained pipelines in a row's directory. RETURNS: by seed, in ascending order."""
    pipelines = {
        int(match[1]): path / "model-best"
        for path in directory.glob("seed-*")
        if (match := re.fullmatch(r"seed-(\d+)", path.name)) and (path / FINISHED).is_file()
    }
    return dict(sorted(pipelines.items()))
