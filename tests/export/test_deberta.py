"""DeBERTa-v2 against transformers in float32, and against a plain computation in int8."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from spacy_distil.encoding import make_batches
from spacy_distil.engines.files import CONFIG
from spacy_distil.engines.torch import TorchEngine
from spacy_distil.errors import ConfigError
from spacy_distil.export.families.deberta import (
    DebertaGraph,
    DebertaWeights,
    buckets_by_distance,
    read,
)
from spacy_distil.export.graph import Precision
from spacy_distil.export.weights import load_weights
from tests.export.graphs import (
    FLOAT,
    SHORT,
    Naive,
    assert_mostly_close,
    assert_valid,
    constants_of,
    of_transformers,
    random_windows,
    run,
    run_session,
    session_of,
)

N_VOCAB, WIDTH, LAYERS, POSITIONS = 50, 32, 2, 72
INT8 = Precision(frozenset(range(LAYERS)), embeddings=True)
# Like the released encoders, but small.
V3: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 2 * WIDTH,
    "initializer_range": 0.2,
    "max_position_embeddings": POSITIONS,
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "max_relative_positions": -1,
    "layer_norm_eps": 1e-7,
}
# Changes to V3.
KINDS: dict[str, dict[str, Any]] = {
    "v3": {},
    "v2-xlarge": {
        "conv_kernel_size": 3,
        "conv_act": "gelu",
        "attention_head_size": 8,
        "pos_att_type": "p2c|c2p",
    },
    "8 buckets": {"position_buckets": 8},
    "7 buckets": {"position_buckets": 7},
    "2 buckets": {"position_buckets": 2},
    "more buckets than distances": {"position_buckets": 256},
    "absolute positions": {"position_biased_input": True},
    "token types": {"type_vocab_size": 2},
    "narrow embeddings": {"embedding_size": 24, "type_vocab_size": 2},
    "relu": {"hidden_act": "relu", "conv_kernel_size": 3, "conv_act": "relu"},
    "gelu_new": {"hidden_act": "gelu_new", "conv_kernel_size": 3},
    "one layer": {"num_hidden_layers": 1, "conv_kernel_size": 3},
    "transformers' defaults": {"position_biased_input": True, "share_att_key": False},
    "everything": {
        "share_att_key": False,
        "position_biased_input": True,
        "type_vocab_size": 2,
        "embedding_size": 24,
        "conv_kernel_size": 3,
        "conv_act": "tanh",
    },
    "long windows": {"max_position_embeddings": 512, "position_buckets": 256},
}
# Lengths of windows. The encoder takes 70 pieces and two special ones.
LENGTHS = [3, 70, 1, 12, 29, 70, 2]


@cache
def model_of(kind: str) -> transformers.PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(
            transformers.DebertaV2Config(**{**V3, **KINDS[kind]})
        )
        # As after training: no bias is zero, no layer norm the identity.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


@cache
def files_of(kind: str) -> dict[str, bytes]:
    return TorchEngine(model_of(kind), device="cpu").to_files()


def config_of(kind: str) -> dict[str, Any]:
    config = json.loads(files_of(kind)[CONFIG])
    assert isinstance(config, dict)
    return config


def weights_of(kind: str) -> DebertaWeights:
    return read(config_of(kind), load_weights(files_of(kind)))


def graph_of(kind: str, precision: Precision = FLOAT) -> bytes:
    return DebertaGraph(weights_of(kind), precision).build()


# In float32


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_transformers(kind: str) -> None:
    windows = random_windows(N_VOCAB, LENGTHS)
    # The budget makes several batches with padding.
    actual = run(graph_of(kind), windows, budget=200)
    np.testing.assert_allclose(actual, of_transformers(model_of(kind), windows), rtol=0, atol=1e-5)


def test_windows_of_all_lengths() -> None:
    windows = random_windows(N_VOCAB, range(1, POSITIONS - 1))
    actual = run(graph_of("8 buckets"), windows, budget=300)
    np.testing.assert_allclose(
        actual, of_transformers(model_of("8 buckets"), windows), rtol=0, atol=1e-5
    )


def test_windows_as_long_as_in_released_encoders() -> None:
    windows = random_windows(N_VOCAB, [510, 126, 129, 254, 387])
    actual = run(graph_of("long windows"), windows)
    np.testing.assert_allclose(
        actual, of_transformers(model_of("long windows"), windows), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["v3", "v2-xlarge"])
@pytest.mark.parametrize("precision", [FLOAT, INT8], ids=["float32", "int8"])
def test_padding_is_finite(kind: str, precision: Precision) -> None:
    (batch,) = make_batches(
        random_windows(N_VOCAB, [70, 1]), prefix=[2], suffix=[3], pad_id=0, max_batch_pieces=1000
    )
    feed = {"ids": batch.ids, "mask": batch.mask, "positions": np.arange(batch.ids.size)}
    (rows,) = session_of(graph_of(kind, precision)).run(["rows"], feed)
    assert np.isfinite(rows).all()


# Buckets


@pytest.mark.parametrize(
    ("n_buckets", "n_positions"),
    [(256, 512), (256, 1024), (256, 128), (32, 212), (16, 72), (8, 72), (7, 72), (6, 13), (2, 72)],
)
def test_buckets_are_those_of_transformers(n_buckets: int, n_positions: int) -> None:
    buckets = buckets_by_distance(n_buckets, n_positions)
    distances = torch.arange(1 - n_positions, n_positions)
    expected = make_log_bucket_position(distances, n_buckets, n_positions)
    np.testing.assert_array_equal(buckets, expected.numpy() + n_buckets)
    # The graph relies on this: buckets of shorter windows are adjacent.
    assert (np.diff(buckets) >= 0).all()
    assert buckets.min() >= 0
    assert buckets.max() < 2 * n_buckets


# Reading


@pytest.mark.parametrize("spelling", ["p2c|c2p", "c2p|p2c", "C2P | p2c", ["c2p", "p2c"]])
def test_spellings_of_pos_att_type(spelling: Any) -> None:
    config = {**config_of("v3"), "pos_att_type": spelling}
    weights = read(config, load_weights(files_of("v3")))
    assert DebertaGraph(weights, FLOAT).build() == graph_of("v3")


def test_settings_that_a_config_leaves_out() -> None:
    """They equal transformers' defaults."""
    kind = "transformers' defaults"
    config = config_of(kind)
    left_out = ["max_relative_positions", "layer_norm_eps", "hidden_act", "type_vocab_size"]
    for setting in [*left_out, "position_biased_input", "share_att_key", "conv_kernel_size"]:
        config.pop(setting, None)
    weights = read(config, load_weights(files_of(kind)))
    assert DebertaGraph(weights, FLOAT).build() == graph_of(kind)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("relative_attention", False),
        ("relative_attention", None),
        ("max_relative_positions", 64),
        ("norm_rel_ebd", "none"),
        ("norm_rel_ebd", None),
        ("hidden_act", "silu"),
        ("conv_kernel_size", 5),
        ("conv_groups", 2),
        ("conv_act", "silu"),
        ("pos_att_type", None),
        ("pos_att_type", ["c2p"]),
        ("pos_att_type", "c2p|p2p"),
        ("pos_att_type", "c2p|p2c|p2p"),
        ("position_buckets", -1),
        ("position_buckets", None),
    ],
)
def test_settings_that_are_refused(setting: str, value: Any) -> None:
    """None leaves the setting out. transformers' default is then refused."""
    config = config_of("v2-xlarge")
    config.pop(setting, None)
    if value is not None:
        config[setting] = value
    with pytest.raises(ConfigError, match=f"{setting} = .*: expected"):
        read(config, load_weights(files_of("v2-xlarge")))


def test_every_weight_is_needed() -> None:
    config, weights = config_of("everything"), load_weights(files_of("everything"))
    for name in weights:
        rest = {other: array for other, array in weights.items() if other != name}
        with pytest.raises(KeyError, match=name):
            read(config, rest)


# In int8


class NaiveDeberta(Naive):
    """Encodes piece by piece, and query by query."""

    def encode(self, ids: np.ndarray) -> np.ndarray:
        w = self.weights
        hidden = self.pieces()[ids]
        if w.summand is not None:
            hidden = hidden + (w.summand if w.summand.ndim == 1 else w.summand[: len(ids)])
        if w.projection is not None:
            hidden = hidden @ w.projection
        hidden = embedded = self.norm(hidden, w.embedding_norm)
        for i, layer in enumerate(w.layers):
            hidden = self.feed_forward(*self.attend(hidden, layer, i in self.precision.layers))
            if i == 0 and w.convolution is not None:
                hidden = self.convolve(hidden, embedded)
        return hidden

    def attend(self, hidden: np.ndarray, layer: Any, int8: bool) -> tuple[np.ndarray, Any, bool]:
        w = self.weights
        query, key, value = (
            np.split(self.product(hidden, part, int8), w.n_heads, axis=1)
            for part in (layer.query, layer.key, layer.value)
        )
        places = torch.arange(len(hidden))
        heads = []
        for h in range(w.n_heads):
            rows = []
            for i in range(len(hidden)):
                buckets = make_log_bucket_position(i - places, w.n_buckets, w.n_positions)
                buckets = buckets.long().numpy() + w.n_buckets
                scores = np.array(
                    [
                        query[h][i] @ key[h][j]
                        + query[h][i] @ layer.distance_keys[h, bucket]
                        + layer.distance_queries[h, bucket] @ key[h][j]
                        for j, bucket in enumerate(buckets)
                    ]
                )
                scores = np.exp(scores / np.sqrt(3 * query[h].shape[1]))
                rows.append(scores / scores.sum() @ value[h])
            heads.append(rows)
        attended = self.product(np.concatenate(heads, 1), layer.attention_out, int8)
        return self.norm(hidden + attended, layer.attention_norm), layer, int8

    def feed_forward(self, hidden: np.ndarray, layer: Any, int8: bool) -> np.ndarray:
        inner = self.product(hidden, layer.up, int8)
        lowest = 0.0 if self.weights.activation == "relu" else -0.17005
        inner = self.product(activate(inner, self.weights.activation), layer.down, int8, lowest)
        return self.norm(hidden + inner, layer.output_norm)

    def convolve(self, hidden: np.ndarray, embedded: np.ndarray) -> np.ndarray:
        convolution = self.weights.convolution
        before, own, after = np.split(convolution.linear.weight, 3)
        rows = []
        for i in range(len(embedded)):
            row = embedded[i] @ own + convolution.linear.bias
            if i > 0:
                row = row + embedded[i - 1] @ before
            if i + 1 < len(embedded):
                row = row + embedded[i + 1] @ after
            rows.append(row)
        summand = activate(np.array(rows), convolution.activation)
        return self.norm(hidden + summand, convolution.norm)


def activate(inner: np.ndarray, activation: str) -> np.ndarray:
    return transformers.activations.ACT2FN[activation](torch.from_numpy(inner)).numpy()


@pytest.mark.parametrize("kind", ["v3", "everything", "relu"])
@pytest.mark.parametrize(
    "precision",
    [INT8, Precision(INT8.layers, reduced_range=True)],
    ids=["everything", "reduced range"],
)
def test_int8_is_the_rounding_that_is_documented(kind: str, precision: Precision) -> None:
    weights: Any = weights_of(kind)
    windows = random_windows(N_VOCAB, SHORT)
    exact = NaiveDeberta(weights, FLOAT)(windows)
    expected = NaiveDeberta(weights, precision)(windows)
    assert_mostly_close(run(graph_of(kind, precision), windows), expected, exact)


@pytest.mark.parametrize(
    "precision",
    [Precision(frozenset({1})), Precision(frozenset({0})), Precision(embeddings=True)],
    ids=["layer 1", "layer 0", "embeddings"],
)
def test_parts_in_int8(precision: Precision) -> None:
    weights: Any = weights_of("v3")
    windows = random_windows(N_VOCAB, SHORT)
    actual = run(graph_of("v3", precision), windows)
    expected = NaiveDeberta(weights, precision)(windows)
    assert_mostly_close(actual, expected, NaiveDeberta(weights, FLOAT)(windows))
    other = NaiveDeberta(weights, INT8)(windows)
    assert np.abs(actual - expected).max() < np.abs(actual - other).max() / 2


@pytest.mark.parametrize("kind", ["v3", "v2-xlarge"])
@pytest.mark.parametrize("precision", [FLOAT, INT8], ids=["float32", "int8"])
@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=2, max_size=12),
    budget=st.integers(72, 2000),
    seed=st.integers(0, 10**6),
)
def test_a_window_does_not_depend_on_its_batch(
    kind: str, precision: Precision, lengths: list[int], budget: int, seed: int
) -> None:
    """All bits are equal, whatever the other windows and the padding."""
    session = session_of(graph_of(kind, precision))
    windows = random_windows(N_VOCAB, lengths, seed)
    together = run_session(session, windows, budget)
    alone = [run_session(session, [window], budget) for window in windows]
    np.testing.assert_array_equal(together, np.concatenate(alone))


# Contents of the graph


def test_int8_weights_are_stored_in_int8() -> None:
    weights = weights_of("v3")
    layer = 4 * WIDTH * WIDTH + 2 * WIDTH * 2 * WIDTH
    for precision, n_int8 in (
        (FLOAT, 0),
        (Precision(frozenset({1})), layer),
        (INT8, LAYERS * layer + weights.pieces.size),
    ):
        constants = constants_of(graph_of("v3", precision))
        assert sum(c.size for c in constants if c.dtype == np.int8) == n_int8
        # No weight is stored twice.
        tables = LAYERS * 2 * (2 * weights.n_buckets) * WIDTH
        large = sum(c.size for c in constants if c.size >= WIDTH * WIDTH)
        assert large == LAYERS * layer + weights.pieces.size + tables


@pytest.mark.parametrize("kind", ["v3", "everything"])
def test_the_graph_is_valid_and_for_old_versions_too(kind: str) -> None:
    assert_valid(graph_of(kind, INT8))
