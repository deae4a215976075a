"""Graphs against transformers in float32, and against a plain numpy computation in int8."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from scipy.special import erf  # type: ignore[import-untyped]

from spacy_distil.encoding import make_batches
from spacy_distil.engines.torch import TorchEngine
from spacy_distil.export.families import build_graph, read_weights
from spacy_distil.export.families.bert import BertWeights
from spacy_distil.export.families.post_norm import PostNormLayer
from spacy_distil.export.graph import Precision, quantize_columns
from spacy_distil.export.weights import Linear, Norm
from tests.util import LAYERS, WIDTH, write_encoder

FLOAT = Precision()
INT8 = Precision(frozenset(range(LAYERS)), embeddings=True)
# Of windows.
SHORT = [3, 9, 1, 8, 5, 9, 6, 2, 7, 9, 4, 8, 5, 1, 6, 7, 10, 3]


def weights_in(directory: Path) -> Any:
    return read_weights(TorchEngine.from_name(str(directory), device="cpu").to_files())


def random_windows(n_vocab: int, lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    """Random pieces, special ones not among them: (length,) int64 each."""
    rng = np.random.default_rng(seed)
    return [rng.integers(5, n_vocab, length) for length in lengths]


def run(graph: bytes, windows: Sequence[np.ndarray], budget: int = 10_000) -> np.ndarray:
    """Rows of all windows, (n_rows, width), in batches of at most `budget` padded pieces."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return run_session(session, windows, budget)


def run_session(
    session: onnxruntime.InferenceSession, windows: Sequence[np.ndarray], budget: int
) -> np.ndarray:
    rows: Any = None
    for batch in make_batches(windows, prefix=[2], suffix=[3], pad_id=1, max_batch_pieces=budget):
        feed = {"ids": batch.ids, "mask": batch.mask, "positions": batch.positions}
        (found,) = session.run(["rows"], feed)
        if rows is None:
            rows = np.full((sum(map(len, windows)), found.shape[1]), np.nan, "f")
        rows[batch.rows] = found
    assert rows.dtype == np.float32
    return rows


def with_ends(window: np.ndarray) -> np.ndarray:
    return np.array([2, *window, 3])


# In float32


def of_transformers(directory: Path, windows: Sequence[np.ndarray]) -> np.ndarray:
    """Last hidden states of transformers' own model, window by window, without padding."""
    model = transformers.AutoModel.from_pretrained(directory).eval()
    with torch.no_grad():
        states = [
            model(input_ids=torch.from_numpy(with_ends(window))[None]).last_hidden_state[0, 1:-1]
            for window in windows
        ]
    return torch.cat(states).numpy()


@pytest.mark.parametrize("budget", [80, 10_000])
def test_hidden_states_are_those_of_transformers(encoder_dir: Path, budget: int) -> None:
    weights = weights_in(encoder_dir)
    # 70 and two special ones are as many as the encoder takes.
    windows = random_windows(len(weights.pieces), [3, 70, 1, 12, 29, 70, 2])
    found = run(build_graph(weights, FLOAT), windows, budget)
    np.testing.assert_allclose(found, of_transformers(encoder_dir, windows), rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_activations(tmp_path: Path, family: str, activation: str) -> None:
    directory = write_encoder(tmp_path, family, activation=activation)
    weights = weights_in(directory)
    windows = random_windows(len(weights.pieces), [7, 40, 1])
    found = run(build_graph(weights, FLOAT), windows)
    np.testing.assert_allclose(found, of_transformers(directory, windows), rtol=0, atol=1e-5)


def test_hidden_states_of_the_teacher(teacher_dir: Path) -> None:
    weights = weights_in(teacher_dir)
    windows = random_windows(len(weights.pieces), [5, 120, 33])
    found = run(build_graph(weights, FLOAT), windows)
    np.testing.assert_allclose(found, of_transformers(teacher_dir, windows), rtol=0, atol=1e-5)


# In int8


class Naive:
    """The same encoder in numpy, in float64, window by window, rounding as it is written down."""

    def __init__(self, weights: BertWeights, precision: Precision) -> None:
        self.weights = weights
        self.precision = precision

    def __call__(self, windows: Sequence[np.ndarray]) -> np.ndarray:
        """(n_rows, width): without the special pieces."""
        return np.concatenate([self.encode(with_ends(window))[1:-1] for window in windows])

    def encode(self, ids: np.ndarray) -> np.ndarray:
        w = self.weights
        pieces = w.pieces.astype("d")
        if self.precision.embeddings:
            scales = np.abs(pieces).max(1, keepdims=True) / 127
            pieces = np.rint(pieces / scales) * scales
        hidden = self.norm(pieces[ids] + w.positions[: len(ids)], w.embedding_norm)
        if w.projection is not None:
            hidden = hidden @ w.projection.weight + w.projection.bias
        for i, layer in enumerate(w.layers):
            hidden = self.layer(hidden, layer, i in self.precision.layers)
        return hidden

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


def assert_mostly_close(found: np.ndarray, expected: np.ndarray, exact: np.ndarray) -> None:
    """But for the rare number that lies so near the middle of two steps that float32 and float64
    round it to different ones, which shows in all rows of its window.

    exact: what no rounding would give, to tell how far off is far.
    """
    rounding = np.abs(expected - exact).max()
    assert rounding > 1e-3
    assert np.isclose(found, expected, rtol=0, atol=2e-5).all(1).mean() > 0.75
    assert np.abs(found - expected).max() < rounding


@pytest.mark.parametrize("reduced_range", [False, True])
def test_int8_is_the_rounding_that_is_documented(encoder_dir: Path, reduced_range: bool) -> None:
    weights = weights_in(encoder_dir)
    windows = random_windows(len(weights.pieces), SHORT)
    precision = Precision(INT8.layers, embeddings=True, reduced_range=reduced_range)
    exact = Naive(weights, FLOAT)(windows)
    found = run(build_graph(weights, precision), windows)
    assert_mostly_close(found, Naive(weights, precision)(windows), exact)


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_int8_with_activations(tmp_path: Path, activation: str) -> None:
    weights = weights_in(write_encoder(tmp_path, "bert", activation=activation))
    windows = random_windows(len(weights.pieces), SHORT)
    exact = Naive(weights, FLOAT)(windows)
    found = run(build_graph(weights, INT8), windows)
    assert_mostly_close(found, Naive(weights, INT8)(windows), exact)


@pytest.mark.parametrize(
    "precision",
    [Precision(frozenset({1})), Precision(frozenset({0})), Precision(embeddings=True)],
    ids=["layer 1", "layer 0", "embeddings"],
)
def test_parts_in_int8(bert_dir: Path, precision: Precision) -> None:
    weights = weights_in(bert_dir)
    windows = random_windows(len(weights.pieces), SHORT)
    found = run(build_graph(weights, precision), windows)
    expected, exact = Naive(weights, precision)(windows), Naive(weights, FLOAT)(windows)
    assert_mostly_close(found, expected, exact)
    other = Naive(weights, INT8)(windows)
    assert np.abs(found - expected).max() < np.abs(found - other).max() / 2


def test_a_row_of_zeros_and_a_row_with_a_huge_number(bert_dir: Path) -> None:
    """And a column of zeros. The first layer sees them as they are."""
    weights = weights_in(bert_dir)
    zeros, huge = 5, 6
    # Layer normalization makes zeros of a row of equal numbers, and here of nothing else.
    weights.positions[:] = 0.0
    weights.embedding_norm.bias[:] = 0.0
    weights.pieces[zeros] = 0.25
    weights.pieces[huge] = 0.0
    weights.pieces[huge, 3] = 1.0
    weights.embedding_norm.weight[3] = 1e4
    layer = weights.layers[0]
    layer.query.weight[:, 4] = 0.0
    # It decides over the step of its row, and not over the attention as well.
    layer.query.weight[3] = layer.key.weight[3] = 0.0
    for windows in ([np.array([zeros] * 4)], [np.array([7, zeros, 8, zeros, 9, 10, huge])]):
        precision = Precision(frozenset({0}))
        found = run(build_graph(weights, precision), windows)
        expected, exact = Naive(weights, precision)(windows), Naive(weights, FLOAT)(windows)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)
        assert np.abs(expected - exact).max() > 4e-3


@cache
def session_of(graph: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def graph(encoder_dirs: dict[str, Path]) -> tuple[bytes, int]:
    """In int8, and its number of pieces."""
    weights = weights_in(encoder_dirs["bert"])
    return build_graph(weights, INT8), len(weights.pieces)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=2, max_size=12),
    budget=st.integers(72, 2000),
    seed=st.integers(0, 10**6),
)
def test_a_window_does_not_depend_on_its_batch(
    graph: tuple[bytes, int], lengths: list[int], budget: int, seed: int
) -> None:
    """Not by a bit: neither on the others nor on the padding."""
    session, n_vocab = session_of(graph[0]), graph[1]
    windows = random_windows(n_vocab, lengths, seed)
    together = run_session(session, windows, budget)
    alone = [run_session(session, [window], budget) for window in windows]
    np.testing.assert_array_equal(together, np.concatenate(alone))


# Rounded weights


@pytest.mark.parametrize(("reduced_range", "limit"), [(False, 127), (True, 63)])
def test_columns_are_rounded_to_the_nearest_step(reduced_range: bool, limit: int) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(50, 20)) * 10.0 ** rng.integers(-6, 6, 20)).astype("f")
    weight[:, 7] = 0.0
    rounded, scales = quantize_columns(weight, reduced_range=reduced_range)
    assert (rounded.dtype, scales.dtype) == (np.int8, np.float32)
    np.testing.assert_array_equal(np.abs(rounded).max(0), [limit * (i != 7) for i in range(20)])
    error = np.abs(rounded * scales.astype("d") - weight)
    assert (error <= scales * 0.5001).all()


def constants_of(graph: bytes) -> list[np.ndarray]:
    return [numpy_helper.to_array(each) for each in onnx.load_from_string(graph).graph.initializer]


@pytest.mark.parametrize("reduced_range", [False, True])
def test_reduced_range_is_of_the_products_alone(bert_dir: Path, reduced_range: bool) -> None:
    weights = weights_in(bert_dir)
    precision = Precision(INT8.layers, embeddings=True, reduced_range=reduced_range)
    constants = [c for c in constants_of(build_graph(weights, precision)) if c.dtype == np.int8]
    embeddings = [c for c in constants if c.shape == weights.pieces.shape]
    products = [c for c in constants if c.shape != weights.pieces.shape]
    assert (len(embeddings), len(products)) == (1, 6 * LAYERS)
    assert {int(np.abs(c).max()) for c in products} == {63 if reduced_range else 127}
    assert np.abs(embeddings[0]).max() == 127


def test_what_is_in_int8_is_kept_in_int8(bert_dir: Path) -> None:
    weights = weights_in(bert_dir)
    for precision, n_int8 in (
        (FLOAT, 0),
        (Precision(frozenset({1})), 6 * 32 * 32 + 2 * 32 * 32),
        (Precision(embeddings=True), weights.pieces.size),
    ):
        constants = constants_of(build_graph(weights, precision))
        assert sum(c.size for c in constants if c.dtype == np.int8) == n_int8
        # Nothing is there twice.
        n_products = 8 * 32 * 32 * LAYERS + weights.pieces.size
        assert sum(c.size for c in constants if c.size >= WIDTH * WIDTH) == (
            n_products + weights.positions.size
        )


def test_the_graph_is_valid_and_for_old_versions_too(graph: tuple[bytes, int]) -> None:
    """What ONNX Runtime 1.18 reads."""
    model = onnx.load_from_string(graph[0])
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert {each.domain: each.version for each in model.opset_import} == {
        "": 18,
        "com.microsoft": 1,
    }
