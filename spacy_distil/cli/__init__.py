"""`python -m spacy distil ...`: one file per command.

spaCy imports this module at the start of EVERY command it runs, so nothing here or in the command
modules may import torch, transformers or anything else that is slow: commands import what they need
when they are called.
"""

from __future__ import annotations

import typer
from spacy.cli._util import app

distil_cli = typer.Typer(
    name="distil",
    help="Distil transformers into small, fast spaCy pipelines.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(distil_cli, name="distil")

# Each module registers its command on `distil_cli`.
from spacy_distil.cli import (  # noqa: E402
    adapt,
    benchmark,
    compare,
    convert,
    encoder,
    init_config,
    pipeline,
    quantize,
    student,
)

__all__ = [
    "adapt",
    "benchmark",
    "compare",
    "convert",
    "distil_cli",
    "encoder",
    "init_config",
    "pipeline",
    "quantize",
    "student",
]
