"""Integrated gradients (Sundararajan, Taly & Yan 2017, "Axiomatic Attribution for Deep Networks",
arXiv 1703.01365) of a pipe's score by the piece embeddings of its encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from spacy.tokens import Doc

from spacy_distil.component.shim import EncoderShim
from spacy_distil.encoding import Batch, to_ops
from spacy_distil.errors import ConfigError
from spacy_distil.trust.explanations.head import Head
from spacy_distil.trust.explanations.pieces import PieceOwners
from spacy_distil.trust.explanations.scores import gradient_of_output, log_odds, read_output
from spacy_distil.trust.explanations.targets import Target

if TYPE_CHECKING:
    from spacy_distil.engines.interpolation import Interpolation

# Steps of the trapezoidal rule. Each doubling computes the points between the ones before.
FEWEST_STEPS = 16
# Of the difference of the scores, or of 1 if that is larger.
TOLERANCE = 1e-2


@dataclass(frozen=True)
class Integral:
    """The result for one target.

    score, baseline: log-odds of the doc, and of its baseline.
    attributions: (n_tokens,) float64.
    error: distance of their sum from `score - baseline`.
    steps: of the integration.
    """

    score: float
    baseline: float
    attributions: np.ndarray
    error: float
    steps: int

    @property
    def is_complete(self) -> bool:
        return self.error <= TOLERANCE * max(1.0, abs(self.score - self.baseline))


class Line:
    """A doc and its baseline, and all between.

    The baseline of a piece is the mask piece, or the piece for unknown text if the tokenizer has no
    mask. Zeros would not do: a family that normalizes embeddings sees the same text at each point
    of the line but its beginning. Special pieces, and pieces that belong to no token, stay.
    """

    def __init__(self, pipe: Any, encoder: EncoderShim, doc: Doc) -> None:
        """doc: with tokens. Its annotation does not matter.

        Raises ConfigError if the tokenizer has no such piece.
        """
        from spacy_distil.engines.interpolation import Interpolation

        self._pipe, self._doc = pipe, doc
        self._head = Head(pipe.model)
        encoded, batches = encoder.prepare([doc])
        self._pooling, self._width = encoded.pooling, encoder.width
        self._owners = PieceOwners(encoder, encoded)
        baseline = _baseline_piece(encoder)
        self._batches: list[tuple[Batch, Interpolation]] = []
        engine: Any = encoder.engine
        for batch in batches:
            line = Interpolation(engine, batch, self._owners.is_owned[batch.rows], baseline)
            self._batches.append((batch, line))
        n_pieces = sum(batch.ids.size for batch, _ in self._batches)
        self._points_at_once = max(1, encoder.max_batch_pieces // max(1, n_pieces))

    def slopes(self, target: Target, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute score and derivative at points of the line.

        points: (n_points,), 0 for the baseline to 1 for the doc.
        RETURNS (scores, slopes): (n_points,), and (n_points, n_tokens) float64: the part of the
            score's derivative along the line that comes from each token.
        """
        parts = [self._slopes(target, some) for some in _chunks(points, self._points_at_once)]
        scores, slopes = zip(*parts, strict=True)
        return np.concatenate(scores), np.concatenate(slopes)

    def _slopes(self, target: Target, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ops = self._pipe.model.ops
        pooling, n = self._pooling, len(points)
        rows = np.zeros((n, pooling.n_rows, self._width), dtype="f")
        backprops = []
        for batch, line in self._batches:
            # The graphs of a long doc would not fit into memory together.
            keep = len(self._batches) == 1
            rows[:, batch.rows], backprop = line.at(points, keep_graph=keep)
            backprops.append(backprop)
        pooled = [pooling.forward(ops, to_ops(ops, own)) for own in rows]
        output, backprop_head = self._head([self._doc] * n, [vectors for vectors, _ in pooled])
        logits = read_output(self._pipe, output)
        found = [log_odds(own, target.rows, target.classes) for own in logits]
        d_output = gradient_of_output(self._pipe, output, [gradient for _, gradient in found])
        d_vectors = backprop_head(d_output)
        d_rows = np.stack(
            [
                ops.to_numpy(backprop(own))
                for (_, backprop), own in zip(pooled, d_vectors, strict=True)
            ]
        )
        by_row = np.zeros(d_rows.shape[:2])
        for (batch, _), backprop in zip(self._batches, backprops, strict=True):
            by_row[:, batch.rows] = backprop(d_rows[:, batch.rows])
        slopes = np.stack([self._owners.sum_by_token(rows) for rows in by_row])
        return np.array([score for score, _ in found]), slopes


def integrate(line: Line, target: Target, most_steps: int) -> Integral:
    """Integrate along the line, in so many steps that the attributions are complete, or most_steps.

    Complete means that their sum is the difference of the scores, within `TOLERANCE`.
    """
    steps = min(FEWEST_STEPS, most_steps)
    scores, slopes = line.slopes(target, np.linspace(0, 1, steps + 1))
    baseline, score = float(scores[0]), float(scores[-1])
    mean = (slopes.sum(axis=0) - (slopes[0] + slopes[-1]) / 2) / steps
    while True:
        error = abs(float(mean.sum()) - (score - baseline))
        found = Integral(score, baseline, mean, error, steps)
        if found.is_complete or 2 * steps > most_steps:
            return found
        _, slopes = line.slopes(target, (np.arange(steps) + 0.5) / steps)
        mean = (mean + slopes.mean(axis=0)) / 2
        steps *= 2


def _baseline_piece(encoder: EncoderShim) -> int:
    from spacy_distil.students.starting import MASKS, UNKNOWNS

    vocabulary = encoder.loaded.tokenizer.read_vocabulary()
    for piece in (*MASKS, *UNKNOWNS):
        if piece in vocabulary:
            return vocabulary[piece]
    raise ConfigError(
        f"Integrated gradients begin with text of mask pieces, and this tokenizer has none of "
        f"{', '.join((*MASKS, *UNKNOWNS))}. Use method = 'occlusion'."
    )


def _chunks(points: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for begin in range(0, len(points), size):
        yield points[begin : begin + size]
