"""Graphs of ALBERT, whose layers share weights, and MPNet, whose attention uses distances.

The reference is transformers' own model; for int8 it runs in float64, and its layers round as
`spacy_distil.export.graph` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from spacy_distil.engines.files import CONFIG, WEIGHTS, map_file
from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.export.families import build_graph, read_weights
from spacy_distil.export.families.bert import BertWeights
from spacy_distil.export.graph import Precision
from spacy_distil.export.weights import count_parameters
from tests.export.graphs import (
    FLOAT,
    SHORT,
    assert_mostly_close,
    assert_valid,
    constants_of,
    of_transformers,
    random_windows,
    run,
    run_session,
    session_of,
    with_ends,
)

N_PIECES, WIDTH, POSITIONS = 60, 32, 300
COMMON = {
    "vocab_size": N_PIECES,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
OFFSET = {"max_position_embeddings": POSITIONS + 2, "pad_token_id": 1}
ALBERT = {"max_position_embeddings": POSITIONS, "embedding_size": 16}


def albert(**changes: Any) -> transformers.PretrainedConfig:
    return transformers.AlbertConfig(**{**COMMON, **ALBERT, **changes})


def mpnet(**changes: Any) -> transformers.PretrainedConfig:
    return transformers.MPNetConfig(**{**COMMON, **OFFSET, **changes})


CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "albert": albert(),
    "albert, gelu": albert(hidden_act="gelu"),
    "albert, as wide as its embeddings": albert(embedding_size=WIDTH),
    "albert, three groups": albert(num_hidden_groups=3),
    "albert, groups of several layers": albert(inner_group_num=2),
    # Three of the five layers are in the first group, two in the second.
    "albert, all of it": albert(
        num_hidden_layers=5, num_hidden_groups=2, inner_group_num=2, hidden_act="relu"
    ),
    "camembert": transformers.CamembertConfig(**COMMON, **OFFSET),
    "mpnet": mpnet(),
    "mpnet, gelu_new": mpnet(hidden_act="gelu_new"),
    "mpnet, unused kinds of distances": mpnet(relative_attention_num_buckets=40),
    "xlm-roberta": transformers.XLMRobertaConfig(**COMMON, **OFFSET),
}
# Number of applied layers, if it is not 3.
N_APPLIED = {"albert, groups of several layers": 6, "albert, all of it": 10}


def write(directory: Path, config: transformers.PretrainedConfig) -> Path:
    """Write a random encoder without tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config, add_pooling_layer=False)
        # As after training: no bias is zero, no normalization the identity.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(directory)
    return directory


def files_in(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in (CONFIG, WEIGHTS)}


def weights_in(directory: Path) -> BertWeights:
    weights = read_weights({name: map_file(directory / name) for name in (CONFIG, WEIGHTS)})
    assert isinstance(weights, BertWeights)
    return weights


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: write(root / str(i), CONFIGS[name]) for i, name in enumerate(CONFIGS)}


@pytest.fixture(params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# In float32


def test_hidden_states_are_those_of_transformers(directories: dict[str, Path], name: str) -> None:
    weights = weights_in(directories[name])
    assert len(weights.layers) == N_APPLIED.get(name, 3)
    # The longest window fills the encoder.
    windows = random_windows(N_PIECES, [3, POSITIONS - 2, 1, 12, 130, 70, 2])
    expected = of_transformers(directories[name], windows)
    session = session_of(build_graph(weights, FLOAT))
    for budget in (600, 10_000):
        actual = run_session(session, windows, budget)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_the_bias_of_each_distance_is_that_of_transformers(directories: dict[str, Path]) -> None:
    actual = weights_in(directories["mpnet"]).distance_bias
    distances = torch.arange(1 - POSITIONS, POSITIONS)
    kinds = MPNetEncoder.relative_position_bucket(distances).numpy()
    by_kind = load((directories["mpnet"] / WEIGHTS).read_bytes())
    expected = by_kind["encoder.relative_attention_bias.weight"][kinds].T
    np.testing.assert_array_equal(actual, expected)
    # The nearest and farthest kinds in both directions.
    assert {1, 15, 17, 31} < set(kinds.tolist())


# In int8


class Rounding:
    """Runs transformers' model in float64, one window at a time, with layers that round.

    precision: layers are counted as they are applied.
    """

    def __init__(self, directory: Path, precision: Precision) -> None:
        self.precision = precision
        self.model = transformers.AutoModel.from_pretrained(directory).double().eval()
        self.applied = -1
        if precision.embeddings:
            pieces = self.model.get_input_embeddings().weight
            pieces.data = self.round(pieces.data, 127)
        layers = [
            module
            for module in self.model.modules()
            if type(module).__name__ in ("AlbertLayer", "MPNetLayer")
        ]
        for layer in layers:
            layer.register_forward_pre_hook(self.count)
            for module in layer.modules():
                if isinstance(module, torch.nn.Linear):
                    module.register_forward_hook(self.replace)

    def __call__(self, windows: Sequence[np.ndarray]) -> np.ndarray:
        rows = []
        for window in windows:
            self.applied = -1
            ids = torch.from_numpy(with_ends(window))[None]
            with torch.no_grad():
                rows.append(self.model(input_ids=ids).last_hidden_state[0, 1:-1])
        return torch.cat(rows).numpy()

    @staticmethod
    def round(rows: torch.Tensor, steps: float) -> torch.Tensor:
        """Round each row with a step by its own largest number."""
        step = rows.abs().amax(-1, keepdim=True) / steps
        return torch.round(rows / step) * step

    def count(self, *_: Any) -> None:
        self.applied += 1

    def replace(
        self, linear: torch.nn.Linear, inputs: tuple[torch.Tensor], output: torch.Tensor
    ) -> torch.Tensor:
        if self.applied not in self.precision.layers:
            return output
        if linear.in_features == COMMON["intermediate_size"]:  # behind an activation
            lowest = 0.0 if self.model.config.hidden_act == "relu" else -0.17005
            rows = self.round(inputs[0] - lowest, 255) + lowest
        else:
            rows = self.round(inputs[0], 127)
        weight = self.round(linear.weight, 63 if self.precision.reduced_range else 127)
        return torch.nn.functional.linear(rows, weight, linear.bias)


@pytest.mark.parametrize(
    "name", ["albert", "albert, all of it", "mpnet", "mpnet, gelu_new"], indirect=True
)
@pytest.mark.parametrize(
    "precision",
    [
        Precision(frozenset(range(10)), embeddings=True),
        Precision(frozenset(range(10)), reduced_range=True),
        Precision(frozenset({1})),
    ],
    ids=["everything", "reduced range", "one layer"],
)
def test_int8_is_the_rounding_that_is_documented(
    directories: dict[str, Path], name: str, precision: Precision
) -> None:
    windows = random_windows(N_PIECES, SHORT)
    actual = run(build_graph(weights_in(directories[name]), precision), windows)
    expected = Rounding(directories[name], precision)(windows)
    exact = Rounding(directories[name], FLOAT)(windows)
    assert_mostly_close(actual, expected, exact)


@pytest.fixture(scope="module", params=["albert", "mpnet"])
def graph(request: pytest.FixtureRequest, directories: dict[str, Path]) -> bytes:
    weights = weights_in(directories[request.param])
    return build_graph(weights, Precision(frozenset(range(3)), embeddings=True))


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 140), min_size=2, max_size=9),
    budget=st.integers(142, 2000),
    seed=st.integers(0, 10**6),
)
def test_a_window_does_not_depend_on_its_batch(
    graph: bytes, lengths: list[int], budget: int, seed: int
) -> None:
    """All bits are equal, whatever the other windows and the padding."""
    session = session_of(graph)
    windows = random_windows(N_PIECES, lengths, seed)
    together = run_session(session, windows, budget)
    alone = [run_session(session, [window], budget) for window in windows]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_the_graph_is_valid(graph: bytes) -> None:
    assert_valid(graph)


# Contents of the graph


@pytest.mark.parametrize("name", ["albert", "albert, all of it"], indirect=True)
@pytest.mark.parametrize("in_int8", [False, True])
def test_shared_weights_are_kept_once(
    directories: dict[str, Path], name: str, in_int8: bool
) -> None:
    weights = weights_in(directories[name])
    precision = Precision(frozenset(range(10 if in_int8 else 0)))
    graph = build_graph(weights, precision)
    config = CONFIGS[name]
    n_layers = config.num_hidden_groups * config.inner_group_num
    assert len({id(layer) for layer in weights.layers}) == n_layers
    large = [constant for constant in constants_of(graph) if constant.size >= WIDTH * WIDTH]
    in_layers = [c for c in large if set(c.shape) <= {WIDTH, 48}]
    assert sum(c.size for c in in_layers) == n_layers * (4 * WIDTH * WIDTH + 2 * WIDTH * 48)
    assert {c.dtype for c in in_layers} == {np.dtype("int8" if in_int8 else "float32")}
    # The file is hardly larger than the weights: only operators are added.
    files = files_in(directories[name])
    n_bytes = sum(constant.nbytes for constant in constants_of(graph))
    assert n_bytes < (1.02 if not in_int8 else 0.7) * 4 * count_parameters(files)


def test_more_shared_layers_add_only_operators(tmp_path: Path) -> None:
    sizes = [
        sum(c.nbytes for c in constants_of(build_graph(weights_in(directory), FLOAT)))
        for n in (1, 12)
        for directory in [write(tmp_path / str(n), albert(num_hidden_layers=n))]
    ]
    assert sizes[0] == sizes[1]


def test_the_bias_of_distances_is_computed_once(directories: dict[str, Path]) -> None:
    weights = weights_in(directories["mpnet"])
    assert weights.distance_bias is not None
    assert weights.distance_bias.shape == (4, 2 * POSITIONS - 1)
    model = onnx.load_from_string(build_graph(weights, FLOAT))
    attention = [node for node in model.graph.node if node.op_type == "MultiHeadAttention"]
    assert len(attention) == 3
    assert len({node.input[5] for node in attention}) == 1
    assert weights_in(directories["xlm-roberta"]).distance_bias is None


# Errors


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            mpnet(relative_attention_num_buckets=20),
            r"relative_attention_num_buckets = 20: .* at least 32",
        ),
        (mpnet(pad_token_id=0), r"pad_token_id = 0 of an 'mpnet' encoder: expected 1"),
    ],
    ids=["distances", "padding"],
)
def test_unsupported_encoder_is_named(
    tmp_path: Path, config: transformers.PretrainedConfig, message: str
) -> None:
    write(tmp_path, config)
    with pytest.raises(ConfigError, match=message):
        weights_in(tmp_path)


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("albert", "encoder.embedding_hidden_mapping_in.weight"),
        ("albert", "encoder.albert_layer_groups.0.albert_layers.0.ffn.bias"),
        ("mpnet", "encoder.relative_attention_bias.weight"),
        ("mpnet", "encoder.layer.2.attention.attn.o.weight"),
    ],
    indirect=["name"],
)
def test_damage_is_named(directories: dict[str, Path], name: str, weight: str) -> None:
    files = files_in(directories[name])
    weights = load(files[WEIGHTS])
    del weights[weight]
    with pytest.raises(WeightsError, match=f"'{weight}' is missing"):
        read_weights({**files, WEIGHTS: save(weights)})
