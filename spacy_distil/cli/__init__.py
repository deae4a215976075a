"""`python -m spacy distil ...`: one file per command.

spaCy imports this module at the start of EVERY command that it runs. So neither this module nor the
modules of the commands may import torch, transformers or anything else that is slow. A command
imports what it needs when it is called.
"""

from __future__ import annotations

from spacy_distil.cli import (
    adapt,
    annotate,
    benchmark,
    calibrate,
    card,
    compare,
    convert,
    encoder,
    explain,
    fit,
    init_config,
    pipeline,
    quantize,
    robustness,
    student,
)
from spacy_distil.cli.app import distil_cli

__all__ = [
    "adapt",
    "annotate",
    "benchmark",
    "calibrate",
    "card",
    "compare",
    "convert",
    "distil_cli",
    "encoder",
    "explain",
    "fit",
    "init_config",
    "pipeline",
    "quantize",
    "robustness",
    "student",
]
