"""Hidden states along a straight line of piece embeddings, and gradients back to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from spacy_distil.encoding import Batch
from spacy_distil.engines.torch import TorchEngine
from spacy_distil.errors import ConfigError

# Takes the gradient of the rows, (n_points, n_rows, width), and returns (n_points, n_rows) float64:
# the derivative of the score along the line, by the piece of each row. Call it once.
Backprop = Callable[[np.ndarray], np.ndarray]


class Interpolation:
    """The line from a baseline to the piece embeddings of a batch.

    Positions, token types and special pieces stay as they are. All is computed in float32, in
    evaluation mode. Gradients reach the embeddings of the batch only, and no weight.
    """

    def __init__(
        self, engine: TorchEngine, batch: Batch, moving: np.ndarray, baseline: int
    ) -> None:
        """moving: (n_rows,) bool, the rows of `batch` whose pieces change along the line.
        baseline: the piece that they all are at its beginning.

        Raises ConfigError if the model takes no embeddings.
        """
        self._model = engine.model
        if "inputs_embeds" not in inspect.signature(self._model.forward).parameters:
            raise ConfigError(
                f"Integrated gradients need an encoder that takes embeddings of pieces, and "
                f"{type(self._model).__name__} takes none. Use method = 'occlusion'."
            )
        self._mask = torch.from_numpy(batch.mask).to(engine.device)
        self._positions = torch.from_numpy(batch.positions).to(engine.device)
        grid = np.zeros(batch.ids.shape, dtype=bool)
        grid.flat[batch.positions[moving]] = True
        ids = torch.from_numpy(batch.ids).to(engine.device)
        where = torch.from_numpy(grid).to(engine.device)
        with torch.no_grad():
            embed = self._model.get_input_embeddings()
            self._start = embed(torch.where(where, torch.full_like(ids, baseline), ids)).float()
            self._way = embed(ids).float() - self._start

    def at(self, points: np.ndarray, *, keep_graph: bool) -> tuple[np.ndarray, Backprop]:
        """Compute hidden states at points of the line.

        points: (n_points,), 0 for the baseline to 1 for the batch.
        keep_graph: whether to keep what the backward pass needs, or to compute it again there.
        RETURNS (rows, backprop): rows are (n_points, n_rows, width) float32.
        """
        factors = torch.from_numpy(points.astype("f")).to(self._way.device)
        embeddings = self._start + factors[:, None, None, None] * self._way
        embeddings = embeddings.flatten(0, 1).requires_grad_()
        forward = self._forward if keep_graph else partial(_again, self._forward)
        with torch.enable_grad():
            rows = forward(embeddings)

        def backprop(d_rows: np.ndarray) -> np.ndarray:
            gradient = torch.from_numpy(np.ascontiguousarray(d_rows, "f")).to(rows.device)
            (found,) = torch.autograd.grad(rows, embeddings, gradient)
            slopes = (found.view(-1, *self._way.shape) * self._way).double().sum(dim=-1)
            own: np.ndarray = slopes.flatten(1).index_select(1, self._positions).cpu().numpy()
            return own

        return rows.detach().cpu().numpy(), backprop

    def _forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        n_points = len(embeddings) // len(self._mask)
        mask = self._mask.repeat(n_points, 1)
        hidden = self._model(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        grid = hidden.reshape(n_points, -1, hidden.shape[-1])
        rows: torch.Tensor = grid.index_select(1, self._positions).float()
        return rows


def _again(
    forward: Callable[[torch.Tensor], torch.Tensor], embeddings: torch.Tensor
) -> torch.Tensor:
    rows: torch.Tensor = checkpoint(forward, embeddings, use_reentrant=False)
    return rows
