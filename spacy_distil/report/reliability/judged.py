"""Predictions of a pipe, each with its probability and whether it is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PER_PREDICTION = ("docs", "confidence", "correct", "squares")
_PER_LOSS = ("loss_docs", "losses", "loss_counts")


@dataclass(frozen=True)
class Judged:
    """Predictions of one pipe beside the truth.

    what: what is predicted, in the plural: "tokens", "entities", "documents" or "answers".
    docs: (n,) number of the document of each prediction.
    confidence: (n,) its probability.
    correct: (n,) bool, whether it is right.
    squares: (n,) its part of the Brier score.
    losses: (m,) -log(probability of the truth), in nats, summed over a stretch of a document.
    loss_docs, loss_counts: (m,) number of its document, and of the tokens or documents in it.
    """

    what: str
    docs: NDArray[np.int64]
    confidence: NDArray[np.float64]
    correct: NDArray[np.bool_]
    squares: NDArray[np.float64]
    losses: NDArray[np.float64]
    loss_docs: NDArray[np.int64]
    loss_counts: NDArray[np.int64]

    @classmethod
    def join(cls, parts: Sequence[Judged]) -> Judged:
        """Join predictions of one pipe."""
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in (*_PER_PREDICTION, *_PER_LOSS)
        }
        return cls(parts[0].what, **arrays)

    def save(self, path: Path) -> None:
        """Write all arrays to an .npz file."""
        with path.open("wb") as file:
            arrays: dict[str, Any] = asdict(self)
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> Judged:
        """Read the file that `save` writes."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(
                str(arrays["what"]), **{k: arrays[k] for k in (*_PER_PREDICTION, *_PER_LOSS)}
            )
