"""The settings of `adapt`: a run in which the whole teacher learns text, and nobody teaches it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def adapt_config(teacher: str, corpus: Sequence[str | Path]) -> dict[str, dict[str, Any]]:
    """Config for `distil_encoder`.

    teacher: directory or hub name.
    corpus: files or directories of text.
    """
    return {
        "teacher": {"name": teacher},
        "student": {"layers": "all"},
        "corpus": {
            "train": [str(path) for path in corpus],
            # Long enough to guess a piece by its context; 512 costs more than it teaches.
            "block_size": 128,
        },
        "objectives": {
            "masked_lm": {"@distil_objectives": "spacy-distil.MaskedLM.v1", "weight": 1.0}
        },
        "training": {
            "epochs": 1,
            "batch_size": 32,
            # A fifth of what a new student learns with: this one has much to forget.
            "learn_rate": 1e-4,
            "warmup": 0.1,
        },
    }
