"""`spacy distil init-config`: write a commented config to start from."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from spacy_distil.cli import distil_cli
from spacy_distil.distillation.template import ENCODER_CONFIG
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.teaching.template import PIPELINE_CONFIG


class Kind(str, Enum):
    """What a config is for."""

    encoder = "encoder"
    pipeline = "pipeline"


TEMPLATES = {Kind.encoder: ENCODER_CONFIG, Kind.pipeline: PIPELINE_CONFIG}


@distil_cli.command("init-config")
def init_config_cli(
    kind: Annotated[Kind, typer.Argument(help="What the config is for.")],
    output: Annotated[Path, typer.Argument(help="File to write, or - to print it.")] = Path("-"),
    force: Annotated[bool, typer.Option("--force", "-F", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented config with every setting at its default.

    Kinds: "encoder", for 'spacy distil encoder'; "pipeline", for 'spacy distil pipeline'.
    """
    with friendly_errors():
        if str(output) == "-":
            print(TEMPLATES[kind], end="")
            return
        if output.exists() and not force:
            raise ConfigError(f"{output} exists. Replace it with --force, or give another name")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(TEMPLATES[kind], encoding="utf-8")
    msg.good(f"Wrote {output}")
