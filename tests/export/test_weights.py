from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load, save

from spacy_distil.engines.files import CONFIG, WEIGHTS
from spacy_distil.engines.torch import TorchEngine
from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.export.families import read_weights
from spacy_distil.export.families.bert import BertWeights
from spacy_distil.export.weights import count_parameters
from tests.util import FAMILIES, LAYERS, WIDTH

Files = dict[str, bytes]

# The others have their own forms.
BERT_LIKE = [family for family in FAMILIES if family not in ("deberta-v2", "modernbert")]


def files_of(directory: Path) -> Files:
    return TorchEngine.from_name(str(directory), device="cpu").to_files()


def read_bert(files: Files) -> BertWeights:
    weights = read_weights(files)
    assert isinstance(weights, BertWeights)
    return weights


@pytest.fixture(scope="module")
def files(encoder_dirs: dict[str, Path]) -> Files:
    return files_of(encoder_dirs["bert"])


def with_config(files: Files, **changes: Any) -> Files:
    config = {**json.loads(files[CONFIG]), **changes}
    return {
        **files,
        CONFIG: json.dumps({k: v for k, v in config.items() if v != "absent"}).encode(),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_layers_and_width(encoder_dirs: dict[str, Path], family: str) -> None:
    files = files_of(encoder_dirs[family])
    weights, config = read_weights(files), json.loads(files[CONFIG])
    embedding = WIDTH // 2 if config["model_type"] in ("albert", "electra") else WIDTH
    assert weights.pieces.shape == (config["vocab_size"], embedding)
    assert (weights.width, len(weights.layers)) == (WIDTH, LAYERS)


@pytest.mark.parametrize("family", BERT_LIKE)
def test_many_families_have_one_form(encoder_dirs: dict[str, Path], family: str) -> None:
    files = files_of(encoder_dirs[family])
    raw, config = load(files[WEIGHTS]), json.loads(files[CONFIG])
    weights = read_bert(files)
    assert (weights.n_heads, weights.activation) == (4, "gelu")
    assert weights.epsilon == config.get("layer_norm_eps", 1e-12)
    # 72 pieces in a window, without the positions before the first piece.
    embedding = weights.pieces.shape[1]
    assert weights.positions.shape == (72, embedding)
    assert (weights.projection is not None) == (embedding != WIDTH)
    shapes = {part: linear.weight.shape for part, linear in vars(weights.layers[0]).items()}
    assert shapes == {
        **dict.fromkeys(("query", "key", "value", "attention_out"), (WIDTH, WIDTH)),
        **dict.fromkeys(("attention_norm", "output_norm"), (WIDTH,)),
        "up": (WIDTH, 2 * WIDTH),
        "down": (2 * WIDTH, WIDTH),
    }
    # Each tensor is read exactly once. Shared layers are one object.
    layers = {id(layer): layer for layer in weights.layers}
    assert len(layers) == (1 if family == "albert" else LAYERS)
    parts = [part for layer in layers.values() for part in vars(layer).values()]
    parts += [weights.embedding_norm, *([weights.projection] if weights.projection else [])]
    read = {part.weight.tobytes() for part in parts} | {part.bias.tobytes() for part in parts}
    assert len(read) == 2 * len(parts)
    stored = {
        value.T.tobytes()
        for name, value in raw.items()
        if not name.endswith(("_embeddings.weight", "relative_attention_bias.weight"))
    }
    assert read == stored


@pytest.mark.parametrize(
    ("family", "first"), [("bert", 0), ("albert", 0), ("roberta", 2), ("mpnet", 2)]
)
def test_positions_start_after_the_padding_of_roberta(
    encoder_dirs: dict[str, Path], family: str, first: int
) -> None:
    files = files_of(encoder_dirs[family])
    raw = load(files[WEIGHTS])
    expected = raw["embeddings.position_embeddings.weight"][first]
    if family != "mpnet":  # it has no token types
        expected = expected + raw["embeddings.token_type_embeddings.weight"][0]
    np.testing.assert_array_equal(read_bert(files).positions[0], expected)


@pytest.mark.parametrize(
    ("family", "activation"), [("albert", "gelu_new"), ("mpnet", "gelu"), ("bert", "gelu")]
)
def test_default_activation(encoder_dirs: dict[str, Path], family: str, activation: str) -> None:
    files = with_config(files_of(encoder_dirs[family]), hidden_act="absent")
    assert read_bert(files).activation == activation


@pytest.mark.parametrize("family", FAMILIES)
def test_number_of_parameters(encoder_dirs: dict[str, Path], family: str) -> None:
    engine = TorchEngine.from_name(str(encoder_dirs[family]), device="cpu")
    assert count_parameters(engine.to_files()) == engine.n_parameters


def test_weights_of_half_precision_are_read_as_float32(files: Files) -> None:
    halves = {name: value.astype(np.float16) for name, value in load(files[WEIGHTS]).items()}
    weights = read_bert({**files, WEIGHTS: save(halves)})
    assert weights.pieces.dtype == weights.layers[0].up.weight.dtype == np.float32
    np.testing.assert_allclose(weights.pieces, read_weights(files).pieces, rtol=1e-3, atol=1e-3)


def test_a_type_that_numpy_lacks_is_named(files: Files) -> None:
    halves = {
        name: torch.from_numpy(value.copy()).bfloat16()
        for name, value in load(files[WEIGHTS]).items()
    }
    content = safetensors.torch.save(halves)
    with pytest.raises(WeightsError, match=r"of type BF16, expected one of F64, F32, .* once"):
        read_weights({**files, WEIGHTS: content})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "longformer"},
            "A 'longformer' encoder cannot be turned into an ONNX graph: expected one of albert, "
            "bert, camembert, deberta-v2, distilbert, electra, modernbert, mpnet, roberta, "
            "xlm-roberta",
        ),
        (
            {"hidden_act": "silu"},
            "the activation 'silu' cannot .* expected one of gelu, gelu_new, relu",
        ),
        (
            {"position_embedding_type": "relative_key"},
            "'relative_key' position embeddings cannot .* expected absolute ones",
        ),
    ],
)
def test_unsupported_encoder_is_named(files: Files, changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_weights(with_config(files, **changes))


def test_distilbert_has_its_own_setting_for_the_activation(
    encoder_dirs: dict[str, Path],
) -> None:
    files = files_of(encoder_dirs["distilbert"])
    changed = with_config(files, activation="relu", hidden_act="silu")
    assert read_bert(changed).activation == "relu"
    with pytest.raises(ConfigError, match="'tanh'"):
        read_weights(with_config(files, activation="tanh"))


def _truncate(files: Files) -> Files:
    return {**files, WEIGHTS: files[WEIGHTS][:-100]}


def _drop(files: Files) -> Files:
    weights = load(files[WEIGHTS])
    del weights["encoder.layer.1.output.dense.bias"]
    return {**files, WEIGHTS: save(weights)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_truncate, r"model\.safetensors \([\d,]+ bytes\) cannot be read"),
        (_drop, r"'encoder\.layer\.1\.output\.dense\.bias' is missing"),
        (
            lambda files: with_config(files, num_hidden_layers=3),
            r"'encoder\.layer\.2\.attention\.self\.query\.weight' is missing",
        ),
        (
            lambda files: with_config(files, num_attention_heads="absent"),
            "'num_attention_heads' is missing",
        ),
        (lambda files: with_config(files, model_type="absent"), 'names no "model_type"'),
    ],
)
def test_damage_is_named(files: Files, change: Callable[[Files], Files], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        read_weights(change(files))
