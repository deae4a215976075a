"""The fused encoder against plain numpy, and against itself: alone, in batches, in threads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from thinc.api import NumpyOps

from spacy_distil.encoding import RaggedBatch, make_batches, make_ragged_batches
from spacy_distil.engines.files import GRAPH, forget_pages, map_file
from spacy_distil.engines.frozen import FUSED_SETTING, load_frozen
from spacy_distil.engines.fused import RECIPE, FusedEncoder, library
from spacy_distil.errors import WeightsError
from spacy_distil.export.encoders import SourceEncoder
from spacy_distil.export.families import build_graph
from spacy_distil.export.families.bert import BertWeights
from spacy_distil.export.graph import Precision
from tests.export.graphs import (
    FLOAT,
    SHORT,
    Naive,
    add_odd_rows,
    assert_mostly_close,
    random_windows,
    weights_in,
)
from tests.util import encoder_of, make_nlp, write_encoder

INT8 = Precision(frozenset(range(2)), embeddings=True)
needs_compiled = pytest.mark.skipif(
    library.load() is None, reason="has no compiled part, or a CPU without AVX-512 VNNI"
)


def cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


@pytest.mark.skipif(
    not {"avx512_vnni", "avx512bw", "avx512dq", "avx512vl"} <= cpu_flags()
    or shutil.which("c++") is None,
    reason="needs a compiler, and a CPU with AVX-512 VNNI",
)
def test_an_install_with_a_compiler_has_the_compiled_part() -> None:
    assert library.load() is not None


def fuse(graph: bytes, *, bfloat16: bool = False) -> FusedEncoder:
    encoder = FusedEncoder.from_graph(graph, GRAPH)
    assert encoder is not None
    # By default, the attention that any of these CPUs has.
    encoder._encoder.bfloat16 = bfloat16
    return encoder


def batches_of(windows: Sequence[np.ndarray], budget: int = 10_000) -> list[RaggedBatch]:
    return list(make_ragged_batches(windows, prefix=[2], suffix=[3], max_batch_pieces=budget))


def run(
    encoder: FusedEncoder, windows: Sequence[np.ndarray], budget: int = 10_000, threads: int = 1
) -> np.ndarray:
    """Encode all windows, in batches of at most `budget` pieces: (n_rows, width)."""
    rows = np.full((sum(map(len, windows)), encoder.width), np.nan, "f")
    for batch in batches_of(windows, budget):
        encoder.encode(batch, rows, threads=threads)
    return rows


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> BertWeights:
    directory = tmp_path_factory.mktemp("bert")
    return weights_in(write_encoder(directory, "bert", width=128, positions=400))


@pytest.fixture(scope="module")
def graph(weights: BertWeights) -> bytes:
    return build_graph(weights, INT8)


@needs_compiled
@pytest.mark.parametrize(
    ("family", "width"),
    [
        *[("bert", 64), ("bert", 192), ("roberta", 64), ("distilbert", 128), ("xlm-roberta", 64)],
        *[("albert", 64), ("albert", 192), ("electra", 128)],
    ],
)
def test_it_is_the_rounding_that_is_documented(family: str, width: int, tmp_path: Path) -> None:
    weights = weights_in(write_encoder(tmp_path, family, width=width))
    windows = random_windows(len(weights.pieces), SHORT)
    actual = run(fuse(build_graph(weights, INT8)), windows)
    exact = Naive(weights, FLOAT)(windows)
    assert_mostly_close(actual, Naive(weights, INT8)(windows), exact)


@needs_compiled
@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_activations(activation: str, tmp_path: Path) -> None:
    weights = weights_in(write_encoder(tmp_path, "bert", width=64, activation=activation))
    windows = random_windows(len(weights.pieces), SHORT)
    actual = run(fuse(build_graph(weights, INT8)), windows)
    exact = Naive(weights, FLOAT)(windows)
    assert_mostly_close(actual, Naive(weights, INT8)(windows), exact)


@needs_compiled
def test_reduced_range(weights: BertWeights) -> None:
    windows = random_windows(len(weights.pieces), SHORT)
    precision = replace(INT8, reduced_range=True)
    actual = run(fuse(build_graph(weights, precision)), windows)
    exact = Naive(weights, FLOAT)(windows)
    assert_mostly_close(actual, Naive(weights, precision)(windows), exact)


@needs_compiled
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_embeddings_in_4_bits(family: str, tmp_path: Path) -> None:
    weights = weights_in(write_encoder(tmp_path, family, width=128))
    windows = random_windows(len(weights.pieces), SHORT)
    precision = replace(INT8, embedding_bits=4)
    actual = run(fuse(build_graph(weights, precision)), windows)
    exact = Naive(weights, FLOAT)(windows)
    assert_mostly_close(actual, Naive(weights, precision)(windows), exact)


@needs_compiled
def test_long_windows(weights: BertWeights, graph: bytes) -> None:
    """Longer than a block of rows, with every remainder of stripes and registers."""
    windows = random_windows(len(weights.pieces), [398, 111, 96, 95, 94, 93, 92, 91, 90, 62, 61])
    exact = Naive(weights, FLOAT)(windows)
    assert_mostly_close(run(fuse(graph), windows), Naive(weights, INT8)(windows), exact)


@needs_compiled
def test_rows_of_zeros_and_huge_numbers(tmp_path: Path) -> None:
    weights = weights_in(write_encoder(tmp_path, "bert", width=64))
    zeros, huge = add_odd_rows(weights)
    encoder = fuse(build_graph(weights, INT8))
    for windows in ([np.array([zeros] * 4)], [np.array([7, zeros, 8, zeros, 9, 10, huge])]):
        actual, expected = run(encoder, windows), Naive(weights, INT8)(windows)
        assert np.isfinite(actual).all()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-2)


@needs_compiled
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_a_window_depends_on_itself_alone(family: str, tmp_path: Path) -> None:
    """To the last bit: alone, in batches of any size, and with any number of threads."""
    weights = weights_in(write_encoder(tmp_path, family, width=128, positions=400))
    graph = build_graph(weights, INT8)
    rng = np.random.default_rng(0)
    windows = random_windows(len(weights.pieces), [*rng.integers(1, 130, 60), 1, 1, 2, 390])
    alone = np.concatenate([run(fuse(graph), [window]) for window in windows])
    for threads in (1, 2, 5):
        encoder = fuse(graph)
        for budget in (64, 512, 10_000):
            np.testing.assert_array_equal(run(encoder, windows, budget, threads), alone)


needs_bfloat16 = pytest.mark.skipif(
    not {"avx512_bf16", "avx512_vnni"} <= cpu_flags() or library.load() is None,
    reason="has no compiled part, or a CPU without AVX512-BF16",
)


@needs_bfloat16
@pytest.mark.parametrize("width", [128, 256])
def test_attention_in_bfloat16(width: int, tmp_path: Path) -> None:
    """It adds nothing to the error of rounding to int8, at any length of a window."""
    weights = weights_in(write_encoder(tmp_path, "bert", width=width, positions=400))
    graph = build_graph(weights, INT8)
    chosen = FusedEncoder.from_graph(graph, GRAPH)
    assert chosen is not None
    assert chosen._encoder.bfloat16
    windows = random_windows(len(weights.pieces), [*range(1, 70), 398])
    found, expected = (run(fuse(graph, bfloat16=flag), windows) for flag in (True, False))
    exact = Naive(weights, FLOAT)(windows)
    errors = [np.square(rows - exact).mean() for rows in (found, expected)]
    assert (found != expected).any()
    assert errors[0] < 1.05 * errors[1]


@needs_bfloat16
def test_a_window_in_bfloat16_depends_on_itself_alone(weights: BertWeights, graph: bytes) -> None:
    windows = random_windows(len(weights.pieces), [*range(1, 60), 390])
    encoder = fuse(graph, bfloat16=True)
    alone = np.concatenate([run(encoder, [window]) for window in windows])
    np.testing.assert_array_equal(run(encoder, windows, threads=2), alone)


@needs_compiled
def test_concurrent_calls(weights: BertWeights, graph: bytes) -> None:
    encoder = fuse(graph)

    def encode(windows: list[np.ndarray]) -> np.ndarray:
        return run(encoder, windows, threads=3)

    parts = [random_windows(len(weights.pieces), [*range(i, 100, 7)]) for i in range(1, 8)]
    expected = [encode(windows) for windows in parts]
    with ThreadPoolExecutor(4) as pool:
        for found, rows in zip(pool.map(encode, parts * 8), expected * 8, strict=True):
            np.testing.assert_array_equal(found, rows)


@needs_compiled
@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")
def test_a_forked_child(weights: BertWeights, graph: bytes) -> None:
    encoder = fuse(graph)
    windows = random_windows(len(weights.pieces), SHORT)
    expected = run(encoder, windows, threads=3)
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(run(encoder, windows, threads=3), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@needs_compiled
def test_embeddings_of_pieces_are_the_mapped_file(graph: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(graph)
    content = map_file(tmp_path / "model.onnx")
    encoder = FusedEncoder.from_graph(content, "model.onnx")
    assert encoder is not None
    encoder._encoder.bfloat16 = False
    start = np.frombuffer(content, np.uint8).ctypes.data
    assert start < encoder._encoder.pieces < start + len(graph)
    forget_pages(content)
    (tmp_path / "model.onnx").unlink()
    windows = [np.arange(2, 20) % encoder.n_pieces, np.arange(5)]
    np.testing.assert_array_equal(run(encoder, windows), run(fuse(graph), windows))


@needs_compiled
def test_rows_that_are_not_there(weights: BertWeights, graph: bytes) -> None:
    (batch,) = batches_of(random_windows(len(weights.pieces), [5]))
    for shape in ((4, 128), (5, 64)):
        with pytest.raises(ValueError, match="for row 4"):
            fuse(graph).encode(batch, np.zeros(shape, "f"), threads=1)


# Graphs for ONNX Runtime


@pytest.mark.parametrize(
    ("family", "options", "precision"),
    [
        ("bert", {"width": 64}, FLOAT),
        ("bert", {"width": 64}, Precision(frozenset({0}), embeddings=True)),
        ("bert", {"width": 64}, Precision(frozenset({0, 1}))),
        ("bert", {"width": 32}, INT8),
        ("albert", {"width": 128}, Precision(frozenset({0, 1}))),
        ("mpnet", {"width": 64}, INT8),
        ("deberta-v2", {"width": 64}, INT8),
        ("modernbert", {"width": 64}, INT8),
    ],
)
def test_other_graphs_are_left_to_onnx_runtime(
    family: str, options: dict[str, int], precision: Precision, tmp_path: Path
) -> None:
    weights = weights_in(write_encoder(tmp_path, family, **options))
    graph = build_graph(weights, precision)
    assert FusedEncoder.from_graph(graph, GRAPH) is None


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = write_encoder(tmp_path_factory.mktemp("files"), "bert", width=64)
    return SourceEncoder(encoder_of(make_nlp(directory))).to_files(INT8)


@needs_compiled
def test_both_runtimes_agree(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    fused = load_frozen(files)
    monkeypatch.setenv(FUSED_SETTING, "0")
    graph = load_frozen(files)
    assert (fused.runtime, graph.runtime) == ("fused", "onnxruntime")
    assert fused.to_files() == graph.to_files()
    windows = random_windows(90, SHORT)
    for special in (False, True):
        for batch in make_batches(
            windows, prefix=[2], suffix=[3], pad_id=1, max_batch_pieces=200, special=special
        ):
            found, expected = (engine.predict(batch, NumpyOps()) for engine in (fused, graph))
            assert np.isclose(found, expected, rtol=0, atol=2e-5).all(1).mean() > 0.75


# Damage


def with_recipe(graph: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    model = onnx.load_from_string(graph)
    recipe = json.loads(model.metadata_props[0].value)
    change(recipe)
    helper.set_model_props(model, {RECIPE: json.dumps(recipe)})
    return model.SerializeToString()


@needs_compiled
@pytest.mark.parametrize(
    "change",
    [
        lambda recipe: recipe.pop("layers"),
        lambda recipe: recipe["layers"].clear(),
        lambda recipe: recipe["layers"][0].pop("up"),
        lambda recipe: recipe["layers"][0].update(up=recipe["layers"][0]["down"]),
        lambda recipe: recipe["layers"][1]["query"].reverse(),
        lambda recipe: recipe["layers"][1].update(attention_bias="constant_999"),
        lambda recipe: recipe.update(pieces=recipe["pieces"][:1]),
        lambda recipe: recipe.update(positions=recipe["pieces"][0]),
        lambda recipe: recipe.update(embedding_bits=4),
        lambda recipe: recipe.update(embedding_bits="8"),
        lambda recipe: recipe.update(n_heads=0),
        lambda recipe: recipe.update(n_heads="4"),
        lambda recipe: recipe.update(n_heads=3),
        lambda recipe: recipe.update(n_heads=True),
        lambda recipe: recipe.update(activation="silu"),
        lambda recipe: recipe.update(epsilon=None),
        lambda recipe: recipe.update(epsilon=float("nan")),
    ],
)
def test_names_that_do_not_fit_are_an_error(
    change: Callable[[dict[str, Any]], Any], graph: bytes
) -> None:
    with pytest.raises(WeightsError, match=r"model\.onnx is damaged: the weights that it names"):
        FusedEncoder.from_graph(with_recipe(graph, change), GRAPH)


@pytest.fixture(scope="module")
def albert_graph(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = write_encoder(tmp_path_factory.mktemp("albert"), "albert", width=128)
    return build_graph(weights_in(directory), INT8)


@needs_compiled
@pytest.mark.parametrize(
    "change",
    [
        lambda recipe: recipe.pop("projection"),
        lambda recipe: recipe.update(projection=None),
        lambda recipe: recipe["projection"].reverse(),
        lambda recipe: recipe["projection"].pop(),
        lambda recipe: recipe["projection"].append("constant_0"),
        lambda recipe: recipe.update(positions=recipe["projection"][0]),
        lambda recipe: recipe.update(embedding_norm=recipe["layers"][0]["output_norm"]),
    ],
)
def test_a_projection_that_does_not_fit_is_an_error(
    change: Callable[[dict[str, Any]], Any], albert_graph: bytes
) -> None:
    with pytest.raises(WeightsError, match=r"model\.onnx is damaged: the weights that it names"):
        FusedEncoder.from_graph(with_recipe(albert_graph, change), GRAPH)


@needs_compiled
def test_shared_layers_are_in_memory_once(graph: bytes, albert_graph: bytes) -> None:
    addresses = [
        [layer.up.weight for layer in fuse(each)._layers] for each in (graph, albert_graph)
    ]
    assert [(len(each), len({*each})) for each in addresses] == [(2, 2), (2, 1)]


@needs_compiled
@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", "null", "7", '{"layers": 1e999}'])
def test_a_recipe_that_is_none_is_an_error(text: str, graph: bytes) -> None:
    model = onnx.load_from_string(graph)
    helper.set_model_props(model, {RECIPE: text})
    with pytest.raises(WeightsError, match=r"model\.onnx is damaged"):
        FusedEncoder.from_graph(model.SerializeToString(), GRAPH)


@needs_compiled
def test_damaged_bytes_of_the_recipe(graph: bytes) -> None:
    """Any byte of the metadata may be wrong: the encoder is left to ONNX Runtime, or refused."""
    place, rng = graph.index(RECIPE.encode()), np.random.default_rng(0)
    n_refused = 0
    for offset in rng.integers(-8, len(graph) - place, 300):
        damaged = bytearray(graph)
        damaged[place + offset] ^= 1 << int(rng.integers(8))
        try:
            FusedEncoder.from_graph(bytes(damaged), GRAPH)
        except WeightsError:
            n_refused += 1
    assert n_refused > 100


@needs_compiled
@pytest.mark.parametrize("pieces", [[5, 10_000, 6], [5, -1], [5] * 399])
def test_pieces_beyond_the_encoder_are_an_error(pieces: list[int], graph: bytes) -> None:
    with pytest.raises(WeightsError, match="its tokenizer is another encoder's"):
        run(fuse(graph), [np.array(pieces)])
