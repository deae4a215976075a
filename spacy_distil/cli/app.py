"""`python -m spacy distil`, which the commands register on."""

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
