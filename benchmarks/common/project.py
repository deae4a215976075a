"""Paths in the repository."""

from __future__ import annotations

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
TRANSFORMER_CONFIG = REPO / "configs" / "train.cfg"
CNN_CONFIG = REPO / "configs" / "cnn.cfg"
