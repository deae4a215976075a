"""Run graphs, and compute the expected output by transformers and by plain numpy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from onnx import numpy_helper
from scipy.special import erf  # type: ignore[import-untyped]

from spacy_distil.encoding import make_batches
from spacy_distil.engines.files import CONFIG, WEIGHTS, map_file
from spacy_distil.export.families import read_weights
from spacy_distil.export.families.post_norm import PostNormLayer
from spacy_distil.export.graph import Precision
from spacy_distil.export.weights import Linear, Norm

FLOAT = Precision()
# Lengths of windows that numpy encodes in a short time.
SHORT = [3, 9, 1, 8, 5, 9, 6, 2, 7, 9, 4, 8, 5, 1, 6, 7, 10, 3]


def weights_in(directory: Path) -> Any:
    """Read the weights of an encoder in a directory. They may be changed."""
    return read_weights({name: map_file(directory / name) for name in (CONFIG, WEIGHTS)})


def random_windows(n_vocab: int, lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    """Draw pieces, but no special ones: (length,) int64 each."""
    rng = np.random.default_rng(seed)
    return [rng.integers(5, n_vocab, length) for length in lengths]


def with_ends(window: np.ndarray) -> np.ndarray:
    """Put a window between its special pieces."""
    return np.array([2, *window, 3])


def run(graph: bytes, windows: Sequence[np.ndarray], budget: int = 10_000) -> np.ndarray:
    """Encode all windows: see `run_session`."""
    return run_session(new_session(graph), windows, budget)


def new_session(graph: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


@cache
def session_of(graph: bytes) -> onnxruntime.InferenceSession:
    return new_session(graph)


def run_session(
    session: onnxruntime.InferenceSession, windows: Sequence[np.ndarray], budget: int
) -> np.ndarray:
    """Encode all windows, in batches of at most `budget` padded pieces: (n_rows, width)."""
    rows: Any = None
    for batch in make_batches(windows, prefix=[2], suffix=[3], pad_id=1, max_batch_pieces=budget):
        feed = {"ids": batch.ids, "mask": batch.mask, "positions": batch.positions}
        (batch_rows,) = session.run(["rows"], feed)
        if rows is None:
            rows = np.full((sum(map(len, windows)), batch_rows.shape[1]), np.nan, "f")
        rows[batch.rows] = batch_rows
    assert rows.dtype == np.float32
    return rows


def of_transformers(
    model: transformers.PreTrainedModel | Path, windows: Sequence[np.ndarray], **options: Any
) -> np.ndarray:
    """Compute transformers' last hidden states, window by window, without padding.

    model: the model or its directory. options: of loading it.
    RETURNS: (n_rows, width), without the special pieces.
    """
    if isinstance(model, Path):
        model = transformers.AutoModel.from_pretrained(model, **options)
    model.eval()
    with torch.no_grad():
        states = [
            model(input_ids=torch.from_numpy(with_ends(window))[None]).last_hidden_state[0, 1:-1]
            for window in windows
        ]
    return torch.cat(states).numpy()


def nearest_of_4_bits(row: np.ndarray) -> np.ndarray:
    """The whole numbers from -7 to 7, times a scale, that are nearest to a row: of five scales."""
    tried = [np.abs(row).max() * share / 7 for share in (1.0, 0.9, 0.8, 0.7, 0.6)]
    rows = [np.clip(np.rint(row / scale), -7, 7) * scale for scale in tried if scale]
    return min([*rows, row * 0], key=lambda other: float(((other - row) ** 2).sum()))


class Naive:
    """Encodes in numpy and float64, window by window, with the documented rounding."""

    def __init__(self, weights: Any, precision: Precision) -> None:
        self.weights = weights
        self.precision = precision

    def __call__(self, windows: Sequence[np.ndarray]) -> np.ndarray:
        """Encode windows: (n_rows, width), without the special pieces."""
        return np.concatenate([self.encode(with_ends(window))[1:-1] for window in windows])

    def encode(self, ids: np.ndarray) -> np.ndarray:
        w = self.weights
        hidden = self.norm(self.pieces()[ids] + w.positions[: len(ids)], w.embedding_norm)
        if w.projection is not None:
            hidden = hidden @ w.projection.weight + w.projection.bias
        for i, layer in enumerate(w.layers):
            hidden = self.layer(hidden, layer, i in self.precision.layers)
        return hidden

    def pieces(self) -> np.ndarray:
        pieces = self.weights.pieces.astype("d")
        if self.precision.embedding_bits == 4:
            return np.array([nearest_of_4_bits(piece) for piece in pieces])
        if self.precision.embeddings:
            scales = np.abs(pieces).max(1, keepdims=True) / 127
            scales[scales == 0] = 1
            pieces = np.rint(pieces / scales) * scales
        return pieces

    def layer(self, hidden: np.ndarray, layer: PostNormLayer, int8: bool) -> np.ndarray:
        parts = (layer.query, layer.key, layer.value)
        query, key, value = (
            np.split(self.product(hidden, part, int8), self.weights.n_heads, axis=1)
            for part in parts
        )
        heads = []
        for q, k, v in zip(query, key, value, strict=True):
            scores = q @ k.T / np.sqrt(q.shape[1])
            scores = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(scores / scores.sum(1, keepdims=True) @ v)
        attended = self.product(np.concatenate(heads, 1), layer.attention_out, int8)
        hidden = self.norm(hidden + attended, layer.attention_norm)
        inner = self.product(hidden, layer.up, int8)
        lowest = None
        if self.weights.activation == "relu":
            inner, lowest = np.maximum(inner, 0), 0.0
        elif self.weights.activation == "gelu":
            inner, lowest = inner * (1 + erf(inner / np.sqrt(2))) / 2, -0.17005
        else:
            cubic = np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)
            inner, lowest = inner * (1 + np.tanh(cubic)) / 2, -0.17005
        return self.norm(hidden + self.product(inner, layer.down, int8, lowest), layer.output_norm)

    def product(
        self, x: np.ndarray, linear: Linear, int8: bool, lowest: float | None = None
    ) -> np.ndarray:
        if not int8:
            return x @ linear.weight.astype("d") + linear.bias
        limit = 63 if self.precision.reduced_range else 127
        columns = []
        for column in linear.weight.T.astype("d"):
            step = np.abs(column).max() / limit
            columns.append(np.rint(column / step) * step if step else column)
        rows = []
        for row in x:
            step = np.abs(row).max() / 127 if lowest is None else (row - lowest).max() / 255
            shift = lowest or 0.0
            rows.append(np.rint((row - shift) / step) * step + shift if step else row)
        return np.array(rows) @ np.array(columns).T + linear.bias

    def norm(self, x: np.ndarray, norm: Norm) -> np.ndarray:
        deviation = np.sqrt(x.var(1, keepdims=True) + self.weights.epsilon)
        return (x - x.mean(1, keepdims=True)) / deviation * norm.weight + norm.bias


def add_odd_rows(weights: Any) -> tuple[int, int]:
    """Give an encoder a piece whose row is zeros, one with a huge number, and a column of zeros.
    The first layer sees all three unchanged.

    RETURNS: the ids of the two pieces.
    """
    zeros, huge = 5, 6
    # Layer normalization turns a row of equal numbers into zeros.
    weights.positions[:] = 0.0
    weights.embedding_norm.bias[:] = 0.0
    weights.pieces[zeros] = 0.25
    weights.pieces[huge] = 0.0
    weights.pieces[huge, 3] = 1.0
    weights.embedding_norm.weight[3] = 1e4
    layer = weights.layers[0]
    layer.query.weight[:, 4] = 0.0
    # The huge number sets the step of its row, but must not decide the attention.
    layer.query.weight[3] = layer.key.weight[3] = 0.0
    return zeros, huge


def assert_mostly_close(actual: np.ndarray, expected: np.ndarray, exact: np.ndarray) -> None:
    """Compare rounded computations in float32 and float64.

    The two round a rare number to different steps, if it lies in the middle between them. This
    shows in all rows of its window.

    exact: the result without rounding, as a scale for differences.
    """
    rounding = np.abs(expected - exact).max()
    assert rounding > 1e-3
    assert np.isclose(actual, expected, rtol=0, atol=2e-5).all(1).mean() > 0.75
    assert np.abs(actual - expected).max() < rounding


def constants_of(graph: bytes) -> list[np.ndarray]:
    return [numpy_helper.to_array(each) for each in onnx.load_from_string(graph).graph.initializer]


def assert_valid(graph: bytes) -> None:
    """Check a graph, also for ONNX Runtime 1.18."""
    model = onnx.load_from_string(graph)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert {each.domain: each.version for each in model.opset_import} == {
        "": 18,
        "com.microsoft": 1,
    }
