"""BERT's graph against transformers in float32, and against plain numpy in int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacy_distil.export.families import build_graph
from spacy_distil.export.graph import Precision, quantize_columns
from tests.export.graphs import (
    FLOAT,
    SHORT,
    Naive,
    add_odd_rows,
    assert_mostly_close,
    assert_valid,
    constants_of,
    of_transformers,
    random_windows,
    run,
    run_session,
    session_of,
    weights_in,
)
from tests.util import LAYERS, WIDTH, write_encoder

INT8 = Precision(frozenset(range(LAYERS)), embeddings=True)


# In float32


@pytest.mark.parametrize("budget", [80, 10_000])
def test_hidden_states_are_those_of_transformers(encoder_dir: Path, budget: int) -> None:
    weights = weights_in(encoder_dir)
    # The encoder takes 70 pieces and two special ones.
    windows = random_windows(len(weights.pieces), [3, 70, 1, 12, 29, 70, 2])
    actual = run(build_graph(weights, FLOAT), windows, budget)
    np.testing.assert_allclose(actual, of_transformers(encoder_dir, windows), rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_activations(tmp_path: Path, family: str, activation: str) -> None:
    directory = write_encoder(tmp_path, family, activation=activation)
    weights = weights_in(directory)
    windows = random_windows(len(weights.pieces), [7, 40, 1])
    actual = run(build_graph(weights, FLOAT), windows)
    np.testing.assert_allclose(actual, of_transformers(directory, windows), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_hidden_states_of_the_teacher(teacher_dir: Path) -> None:
    weights = weights_in(teacher_dir)
    windows = random_windows(len(weights.pieces), [5, 120, 33])
    actual = run(build_graph(weights, FLOAT), windows)
    np.testing.assert_allclose(actual, of_transformers(teacher_dir, windows), rtol=0, atol=1e-5)


# In int8


@pytest.mark.parametrize("reduced_range", [False, True])
def test_int8_is_the_rounding_that_is_documented(encoder_dir: Path, reduced_range: bool) -> None:
    weights = weights_in(encoder_dir)
    windows = random_windows(len(weights.pieces), SHORT)
    precision = Precision(INT8.layers, embeddings=True, reduced_range=reduced_range)
    exact = Naive(weights, FLOAT)(windows)
    actual = run(build_graph(weights, precision), windows)
    assert_mostly_close(actual, Naive(weights, precision)(windows), exact)


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_int8_with_activations(tmp_path: Path, activation: str) -> None:
    weights = weights_in(write_encoder(tmp_path, "bert", activation=activation))
    windows = random_windows(len(weights.pieces), SHORT)
    exact = Naive(weights, FLOAT)(windows)
    actual = run(build_graph(weights, INT8), windows)
    assert_mostly_close(actual, Naive(weights, INT8)(windows), exact)


@pytest.mark.parametrize(
    "precision",
    [
        Precision(frozenset({1})),
        Precision(frozenset({0})),
        Precision(embeddings=True),
        Precision(embeddings=True, embedding_bits=4),
    ],
    ids=["layer 1", "layer 0", "embeddings", "embeddings in 4 bits"],
)
def test_parts_in_int8(bert_dir: Path, precision: Precision) -> None:
    weights = weights_in(bert_dir)
    windows = random_windows(len(weights.pieces), SHORT)
    actual = run(build_graph(weights, precision), windows)
    expected, exact = Naive(weights, precision)(windows), Naive(weights, FLOAT)(windows)
    assert_mostly_close(actual, expected, exact)
    other = Naive(weights, INT8)(windows)
    assert np.abs(actual - expected).max() < np.abs(actual - other).max() / 2


def test_a_row_of_zeros_and_a_row_with_a_huge_number(bert_dir: Path) -> None:
    """There is a column of zeros, too. The first layer sees all three unchanged."""
    weights = weights_in(bert_dir)
    zeros, huge = add_odd_rows(weights)
    for windows in ([np.array([zeros] * 4)], [np.array([7, zeros, 8, zeros, 9, 10, huge])]):
        precision = Precision(frozenset({0}))
        actual = run(build_graph(weights, precision), windows)
        expected, exact = Naive(weights, precision)(windows), Naive(weights, FLOAT)(windows)
        assert np.isfinite(actual).all()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-3)
        assert np.abs(expected - exact).max() > 4e-3


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
    """All bits are equal, whatever the other windows and the padding."""
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


@pytest.mark.parametrize("reduced_range", [False, True])
def test_reduced_range_applies_only_to_products(bert_dir: Path, reduced_range: bool) -> None:
    weights = weights_in(bert_dir)
    precision = Precision(INT8.layers, embeddings=True, reduced_range=reduced_range)
    constants = [c for c in constants_of(build_graph(weights, precision)) if c.dtype == np.int8]
    embeddings = [c for c in constants if c.shape == weights.pieces.shape]
    products = [c for c in constants if c.shape != weights.pieces.shape]
    assert (len(embeddings), len(products)) == (1, 6 * LAYERS)
    assert {int(np.abs(c).max()) for c in products} == {63 if reduced_range else 127}
    assert np.abs(embeddings[0]).max() == 127


def test_int8_weights_are_stored_in_int8(bert_dir: Path) -> None:
    weights = weights_in(bert_dir)
    for precision, n_int8 in (
        (FLOAT, 0),
        (Precision(frozenset({1})), 6 * 32 * 32 + 2 * 32 * 32),
        (Precision(embeddings=True), weights.pieces.size),
    ):
        constants = constants_of(build_graph(weights, precision))
        assert sum(c.size for c in constants if c.dtype == np.int8) == n_int8
        # No weight is stored twice.
        n_products = 8 * 32 * 32 * LAYERS + weights.pieces.size
        assert sum(c.size for c in constants if c.size >= WIDTH * WIDTH) == (
            n_products + weights.positions.size
        )


def test_the_graph_is_valid_and_for_old_versions_too(graph: tuple[bytes, int]) -> None:
    assert_valid(graph[0])
