"""ModernBERT's graph against transformers in float32, and against plain numpy in int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf  # type: ignore[import-untyped]

from spacy_distil.engines.files import map_file, parse_config
from spacy_distil.errors import ConfigError
from spacy_distil.export.families.modernbert import (
    ModernBertGraph,
    ModernBertLayer,
    ModernBertWeights,
    Scope,
    read,
)
from spacy_distil.export.graph import Precision
from spacy_distil.export.weights import Weights, load_weights
from tests.export.graphs import (
    FLOAT,
    SHORT,
    Naive,
    assert_mostly_close,
    assert_valid,
    constants_of,
    new_session,
    of_transformers,
    random_windows,
    run,
    run_session,
)

WIDTH, HIDDEN, LAYERS, N_VOCAB, POSITIONS = 32, 48, 4, 100, 320
INT8 = Precision(frozenset(range(LAYERS)), embeddings=True)
# Lengths of windows. The encoder takes 318 pieces and two special ones. Short windows lie within
# the reach of local attention.
LENGTHS = [3, 318, 1, 12, 29, 150, 7]
BIASES = {"attention_bias": True, "mlp_bias": True, "norm_bias": True}


def write(directory: Path, **changes: Any) -> Path:
    """Write a random encoder with layers: global, local, local, global."""
    config = transformers.ModernBertConfig(
        **{
            "vocab_size": N_VOCAB,
            "hidden_size": WIDTH,
            "intermediate_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "max_position_embeddings": POSITIONS,
            "local_attention": 11,
            "global_rope_theta": 2000.0,
            "local_rope_theta": 300.0,
            "initializer_range": 0.1,
            "pad_token_id": 1,
            "bos_token_id": 2,
            "cls_token_id": 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
            **changes,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config)
        # As after training: no bias is zero, no layer norm the identity.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(directory)
    return directory


def files_in(directory: Path) -> tuple[dict[str, Any], Weights]:
    """Read config and weights."""
    files = {path.name: map_file(path) for path in directory.iterdir()}
    return parse_config(files), load_weights(files)


def weights_in(directory: Path) -> ModernBertWeights:
    return read(*files_in(directory))


def build(weights: ModernBertWeights, precision: Precision) -> bytes:
    return ModernBertGraph(weights, precision).build()


@pytest.fixture(scope="module")
def plain_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without biases, like the published encoders."""
    return write(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def biased_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("biased"), **BIASES)


@pytest.fixture(params=["plain_dir", "biased_dir"])
def directory(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


# In float32


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("budget", [80, 10_000])
def test_hidden_states_are_those_of_transformers(
    directory: Path, attention: str, budget: int
) -> None:
    windows = random_windows(N_VOCAB, LENGTHS)
    actual = run(build(weights_in(directory), FLOAT), windows, budget)
    expected = of_transformers(directory, windows, attn_implementation=attention)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_activation": "gelu_new"},
        {"hidden_activation": "relu", **BIASES},
        {"norm_bias": True},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"global_attn_every_n_layers": 1},
        {"global_attn_every_n_layers": 2, "local_attention": 40},
        {"num_attention_heads": 1, "local_attention": 1},
        {"num_hidden_layers": 1, "norm_eps": 0.1},
    ],
    ids=str,
)
def test_settings(tmp_path: Path, changes: dict[str, Any]) -> None:
    directory = write(tmp_path, **changes)
    windows = random_windows(N_VOCAB, [7, 60, 1])
    actual = run(build(weights_in(directory), FLOAT), windows)
    expected = of_transformers(directory, windows, attn_implementation="eager")
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_settings_left_at_their_defaults(tmp_path: Path) -> None:
    """A reach of 64, and bases of 160,000 and 10,000."""
    directory = write(tmp_path)
    config, weights = files_in(directory)
    for name in (
        "attention_bias",
        "global_attn_every_n_layers",
        "global_rope_theta",
        "hidden_activation",
        "layer_types",
        "local_attention",
        "local_rope_theta",
        "mlp_bias",
        "norm_bias",
        "norm_eps",
        "rope_parameters",
    ):
        config.pop(name, None)
    windows = random_windows(N_VOCAB, [7, 200])
    actual = run(build(read(config, weights), FLOAT), windows)
    model = transformers.AutoModel.from_config(transformers.ModernBertConfig.from_dict(config))
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    model.save_pretrained(directory)
    expected = of_transformers(directory, windows, attn_implementation="eager")
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


# Configs of transformers 4 and 5

FOUR = {"global_attn_every_n_layers": 3, "global_rope_theta": 7.0, "local_rope_theta": 5.0}
FIVE = {
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 7.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5.0},
    },
}
FAR, NEAR = Scope(None, 7.0), Scope(5, 5.0)
USUAL = [FAR, NEAR, NEAR, FAR]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (FOUR, USUAL),
        (FIVE, USUAL),
        # transformers 4 adds its own settings to a file of transformers 5.
        ({**FIVE, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}, USUAL),
        ({**FIVE, "global_attn_every_n_layers": 2}, USUAL),
        # Files of either, as transformers 5 reads them.
        ({**FOUR, "layer_types": ["sliding_attention"] * 4}, [NEAR] * 4),
        ({**FOUR, "layer_types": None, "rope_parameters": None, "rope_scaling": None}, USUAL),
        ({**FOUR, "rope_parameters": {"sliding_attention": None}}, USUAL),
        (
            {**FOUR, "rope_parameters": {"full_attention": {"rope_theta": 9.0}}},
            [Scope(None, 9.0), NEAR, NEAR, Scope(None, 9.0)],
        ),
        ({**FOUR, "global_attn_every_n_layers": 2}, [FAR, NEAR, FAR, NEAR]),
        ({**FOUR, "local_rope_theta": None}, [FAR, Scope(5, 7.0), Scope(5, 7.0), FAR]),
        (
            {**FOUR, "global_rope_theta": None},
            [Scope(None, 160000.0), NEAR, NEAR, Scope(None, 160000.0)],
        ),
        ({**FOUR, "local_attention": 10}, USUAL),
        ({**FOUR, "local_attention": 12}, [FAR, Scope(6, 5.0), Scope(6, 5.0), FAR]),
    ],
)
def test_scopes(plain_dir: Path, form: dict[str, Any], expected: list[Scope]) -> None:
    config, weights = files_in(plain_dir)
    config = {name: value for name, value in config.items() if name not in {*FOUR, *FIVE}}
    assert [layer.scope for layer in read({**config, **form}, weights).layers] == expected


def linear_scaling(name: str) -> dict[str, Any]:
    return {name: {"rope_type": "linear", "factor": 2.0}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_activation": "silu"}, "the activation 'silu' .* one of gelu, gelu_new, relu"),
        (linear_scaling("rope_scaling"), "rope_type = 'linear' .* expected 'default'"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_type = 'yarn' .* expected 'default'"),
        ({"rope_parameters": linear_scaling("sliding_attention")}, "rope_type = 'linear'"),
        (
            {"layer_types": ["full_attention"] * 3},
            "num_hidden_layers = 4 and layer_types = .* full_attention, sliding_attention for each",
        ),
        ({"layer_types": ["full_attention"] * 3 + ["linear_attention"]}, "'linear_attention'"),
    ],
)
def test_unsupported_encoder_is_named(
    plain_dir: Path, changes: dict[str, Any], message: str
) -> None:
    config, weights = files_in(plain_dir)
    with pytest.raises(ConfigError, match=message):
        read({**config, **changes}, weights)


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("norm_bias", "embeddings.norm.bias"),
        ("attention_bias", "layers.0.attn.Wqkv.bias"),
        ("mlp_bias", "layers.0.mlp.Wi.bias"),
    ],
)
def test_missing_bias_is_named(plain_dir: Path, setting: str, name: str) -> None:
    config, weights = files_in(plain_dir)
    with pytest.raises(KeyError, match=name):
        read({**config, setting: True}, weights)


def test_every_weight_is_needed(plain_dir: Path) -> None:
    config, weights = files_in(plain_dir)
    for name in weights:
        with pytest.raises(KeyError, match=name):
            read(config, {other: value for other, value in weights.items() if other != name})


# In int8


class NaiveModernBert(Naive):
    def encode(self, ids: np.ndarray) -> np.ndarray:
        w = self.weights
        hidden = self.norm(self.pieces()[ids], w.embedding_norm)
        for i, layer in enumerate(w.layers):
            int8 = i in self.precision.layers
            normed = self.norm(hidden, layer.attention_norm) if layer.attention_norm else hidden
            hidden = hidden + self.attend(normed, layer, int8)
            normed = self.norm(hidden, layer.feed_forward_norm)
            up = self.activate(self.product(normed, layer.up, int8))
            inner = up * self.product(normed, layer.gate, int8)
            hidden = hidden + self.product(inner, layer.down, int8)
        return self.norm(hidden, w.final_norm)

    def attend(self, normed: np.ndarray, layer: ModernBertLayer, int8: bool) -> np.ndarray:
        """Attend from one piece at a time to the pieces that it sees."""
        n_heads, n = self.weights.n_heads, len(normed)
        query, key, value = (
            self.product(normed, part, int8).reshape(n, n_heads, -1)
            for part in (layer.query, layer.key, layer.value)
        )
        query, key = self.rotate(query, layer.scope.theta), self.rotate(key, layer.scope.theta)
        reach = n if layer.scope.reach is None else layer.scope.reach
        attended = np.zeros_like(query)
        for i in range(n):
            seen = slice(max(0, i - reach), i + reach + 1)
            for head in range(n_heads):
                scores = np.exp(key[seen, head] @ query[i, head] / np.sqrt(query.shape[2]))
                attended[i, head] = scores / scores.sum() @ value[seen, head]
        return self.product(attended.reshape(n, -1), layer.attention_out, int8)

    def rotate(self, x: np.ndarray, theta: float) -> np.ndarray:
        """Rotate pairs of numbers, one from each half of a head, as complex numbers."""
        half = x.shape[2] // 2
        angles = np.arange(len(x))[:, None] / theta ** (np.arange(half) / half)
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
        return np.concatenate([turned.real, turned.imag], axis=2)

    def activate(self, x: np.ndarray) -> np.ndarray:
        if self.weights.activation == "relu":
            return np.maximum(x, 0)
        return x * (1 + erf(x / np.sqrt(2))) / 2


@pytest.mark.parametrize("reduced_range", [False, True])
def test_int8_is_the_rounding_that_is_documented(directory: Path, reduced_range: bool) -> None:
    weights = weights_in(directory)
    windows = random_windows(N_VOCAB, [*SHORT, 20])
    precision = Precision(INT8.layers, embeddings=True, reduced_range=reduced_range)
    actual = run(build(weights, precision), windows)
    expected = NaiveModernBert(weights, precision)(windows)
    exact = NaiveModernBert(weights, FLOAT)(windows)
    assert_mostly_close(actual, expected, exact)


def test_int8_with_another_activation(tmp_path: Path) -> None:
    weights = weights_in(write(tmp_path, hidden_activation="relu", **BIASES))
    windows = random_windows(N_VOCAB, SHORT)
    actual = run(build(weights, INT8), windows)
    assert_mostly_close(
        actual, NaiveModernBert(weights, INT8)(windows), NaiveModernBert(weights, FLOAT)(windows)
    )


@pytest.mark.parametrize(
    "precision",
    [Precision(frozenset({3})), Precision(frozenset({0, 2})), Precision(embeddings=True)],
    ids=["layer 3", "layers 0 and 2", "embeddings"],
)
def test_parts_in_int8(plain_dir: Path, precision: Precision) -> None:
    weights = weights_in(plain_dir)
    windows = random_windows(N_VOCAB, SHORT)
    actual = run(build(weights, precision), windows)
    expected = NaiveModernBert(weights, precision)(windows)
    exact = NaiveModernBert(weights, FLOAT)(windows)
    assert_mostly_close(actual, expected, exact)
    other = NaiveModernBert(weights, INT8)(windows)
    assert np.abs(actual - expected).max() < np.abs(actual - other).max() / 2


@pytest.mark.parametrize("pieces", [[5] * 4, [7, 5, 8, 5, 9]], ids=str)
def test_a_piece_of_zeros(plain_dir: Path, pieces: list[int]) -> None:
    """Initial padding is like that: without biases, its rows stay zeros up to the attention."""
    weights = weights_in(plain_dir)
    weights.pieces[5] = 0.0
    windows = [np.array(pieces)]
    actual = run(build(weights, INT8), windows)
    np.testing.assert_allclose(actual, NaiveModernBert(weights, INT8)(windows), rtol=0, atol=2e-5)


def test_int8_weights_are_stored_in_int8(plain_dir: Path) -> None:
    weights = weights_in(plain_dir)
    n_layer = 4 * WIDTH * WIDTH + 3 * WIDTH * HIDDEN
    n_pieces = N_VOCAB * WIDTH
    # Cosines and sines for both scopes.
    n_rotations = 2 * 2 * POSITIONS * WIDTH // 4 // 2
    for precision, n_int8 in (
        (FLOAT, 0),
        (Precision(frozenset({1})), n_layer),
        (Precision(frozenset(range(LAYERS))), n_layer * LAYERS),
        (Precision(embeddings=True), n_pieces),
    ):
        constants = constants_of(build(weights, precision))
        assert sum(c.size for c in constants if c.dtype == np.int8) == n_int8
        # No weight is stored twice.
        large = sum(c.size for c in constants if c.ndim == 2 and c.size >= WIDTH * WIDTH)
        assert large == n_layer * LAYERS + n_pieces + n_rotations


# Windows and their batches


@pytest.fixture(scope="module", params=["float32", "int8"])
def session(request: pytest.FixtureRequest, plain_dir: Path) -> onnxruntime.InferenceSession:
    graph = build(weights_in(plain_dir), FLOAT if request.param == "float32" else INT8)
    return new_session(graph)


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, POSITIONS - 2), min_size=2, max_size=8),
    budget=st.integers(80, 4000),
    seed=st.integers(0, 10**6),
)
def test_a_window_does_not_depend_on_its_batch(
    session: onnxruntime.InferenceSession, lengths: list[int], budget: int, seed: int
) -> None:
    """All bits are equal, whatever the other windows and the padding."""
    windows = random_windows(N_VOCAB, lengths, seed)
    together = run_session(session, windows, budget)
    alone = [run_session(session, [window], budget) for window in windows]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_padding_far_from_every_piece(session: onnxruntime.InferenceSession) -> None:
    """Such padding sees no piece within its reach. Its rows must be finite all the same."""
    rng = np.random.default_rng(0)
    mask = (np.arange(200) < np.array([[200], [3]])).astype(np.int64)
    ids = rng.integers(5, N_VOCAB, mask.shape)
    feed = {"ids": ids, "mask": mask, "positions": np.arange(mask.size)}
    (rows,) = session.run(["rows"], feed)
    assert np.isfinite(rows).all()
    feed["ids"] = np.where(mask, ids, 1)
    (others,) = session.run(["rows"], feed)
    pieces = mask.reshape(-1) == 1
    np.testing.assert_array_equal(others[pieces], rows[pieces])


def test_the_graph_is_valid_and_for_old_versions_too(biased_dir: Path) -> None:
    assert_valid(build(weights_in(biased_dir), INT8))
