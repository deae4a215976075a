"""A `config.json` whose values cannot be right is refused, by setting and value."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
import transformers
from safetensors.torch import load_file, save_file
from thinc.api import NumpyOps

from spacy_distil.component.shim import EncoderShim
from spacy_distil.engines.config_check import check_settings, require_settings
from spacy_distil.engines.pretrained import load_encoder
from spacy_distil.errors import ConfigError, DistilError, WeightsError
from spacy_distil.runs.digests import SUMS
from spacy_distil.students.teachers import load_teacher
from tests.teachers import write_teacher
from tests.util import SENTENCES, encoder_of, make_nlp

BLANK = spacy.blank("en")
WRONG: list[tuple[str, Any, str]] = [
    *(("hidden_size", value, "a whole number from 1 to") for value in (0, -32, "32", 32.0, None)),
    ("hidden_size", True, "a whole number from 1 to"),
    ("num_attention_heads", -4, "a whole number from 1 to"),
    ("num_attention_heads", "4", "a whole number from 1 to"),
    ("num_hidden_layers", 10**9, "a whole number from 1 to 1,000"),
    ("vocab_size", [276], "a whole number from 1 to"),
    ("max_position_embeddings", 0, "a whole number from 1 to"),
    ("intermediate_size", {}, "a whole number from 1 to"),
    ("type_vocab_size", -1, "a whole number from 0 to"),
    *(
        ("layer_norm_eps", value, "a number above 0 and below 1")
        for value in (-1, -1e-12, 1.0, "1e-12", None, float("nan"), float("inf"), True)
    ),
    *(("hidden_dropout_prob", value, "a number from 0 to below 1") for value in (-0.1, 1, "0")),
    ("attention_probs_dropout_prob", 2.0, "a number from 0 to below 1"),
    ("hidden_act", 3, "the name of a function"),
    ("is_decoder", True, "false: an encoder has no decoder"),
    ("add_cross_attention", True, "false: an encoder has no decoder"),
    ("quantization_config", {"quant_method": "gptq"}, "weights that are floating-point numbers"),
    ("position_embedding_type", "absolut", "one of absolute, relative_key"),
    ("pad_token_id", -1, 'null, or a whole number from 0 to below "vocab_size"'),
    ("pad_token_id", 276, 'null, or a whole number from 0 to below "vocab_size"'),
    ("pad_token_id", "0", 'null, or a whole number from 0 to below "vocab_size"'),
]


@pytest.mark.parametrize(("name", "value", "expected"), WRONG)
def test_a_wrong_value_is_named(bert_dir: Path, name: str, value: Any, expected: str) -> None:
    config = json.loads((bert_dir / "config.json").read_text())
    check_settings(config)
    message = f'config.json has "{name}": {value!r}, expected {expected}'
    with pytest.raises(WeightsError, match=re.escape(message)):
        check_settings({**config, name: value})


def test_configs_of_all_families_pass(encoder_dir: Path) -> None:
    check_settings(json.loads((encoder_dir / "config.json").read_text()))


def test_settings_that_are_required() -> None:
    require_settings({"dim": 3}, {"hidden_size", "dim"})
    with pytest.raises(WeightsError, match=r'config\.json has no "dim" or "hidden_size"'):
        require_settings({"width": 3}, {"hidden_size", "dim"})


# However the encoder is loaded


def change(directory: Path, **changes: Any) -> None:
    """Change settings in a config.json. None removes a setting."""
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.fixture
def encoder(bert_dir: Path, tmp_path: Path) -> tuple[EncoderShim, Path]:
    """An encoder, and a folder of its files without digests."""
    return save_plain(bert_dir, tmp_path / "encoder")


def save_plain(source: Path, directory: Path) -> tuple[EncoderShim, Path]:
    """Load an encoder, and save its files without digests."""
    shim = encoder_of(make_nlp(source, initialize=False))
    shim.load_pretrained()
    shim.to_disk(directory)
    (directory / SUMS).unlink()
    return shim, directory


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": "32"}, "\"hidden_size\": '32', expected a whole number"),
    ({"layer_norm_eps": -1}, '"layer_norm_eps": -1, expected a number above 0'),
    ({"num_attention_heads": -4}, '"num_attention_heads": -4'),
    ({"num_attention_heads": None}, 'config.json has no "num_attention_heads"'),
    ({"hidden_size": None}, 'config.json has no "hidden_size"'),
    ({"num_hidden_layers": None}, 'config.json has no "num_hidden_layers"'),
    ({"vocab_size": None}, 'config.json has no "vocab_size"'),
    ({"hidden_act": "gelou"}, "\"hidden_act\": 'gelou', which transformers .* does not know"),
    ({"add_cross_attention": True}, '"add_cross_attention": True, expected false'),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_it_is_refused_in_a_saved_encoder(
    encoder: tuple[EncoderShim, Path], changes: dict[str, Any], message: str
) -> None:
    shim, directory = encoder
    change(directory, **changes)
    with pytest.raises(WeightsError, match=message):
        EncoderShim(shim.settings).from_disk(directory)


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_it_is_refused_by_name(
    encoder: tuple[EncoderShim, Path], changes: dict[str, Any], message: str
) -> None:
    _, directory = encoder
    change(directory, **changes)
    with pytest.raises(WeightsError):  # transformers 5 refuses some by itself
        load_encoder(str(directory))
    if transformers.__version__.startswith("4."):
        with pytest.raises(WeightsError, match=message):
            load_encoder(str(directory))


@pytest.mark.parametrize(
    "changes", [{"layer_norm_eps": -1}, {"num_attention_heads": None}, {"is_decoder": True}]
)
def test_it_is_refused_in_a_teacher(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_teacher(tmp_path, "bert", head=True)
    change(tmp_path, **changes)
    with pytest.raises(WeightsError, match=next(iter(changes))):
        load_teacher(str(tmp_path))


def test_a_decoder_is_refused(encoder: tuple[EncoderShim, Path]) -> None:
    """Each piece would see those before it alone: other vectors, without a word."""
    shim, directory = encoder
    change(directory, is_decoder=True)
    with pytest.raises(WeightsError, match='"is_decoder": True, expected false'):
        EncoderShim(shim.settings).from_disk(directory)
    with pytest.raises(ConfigError, match="it has a decoder"):
        load_encoder(str(directory))


def test_positions_are_required_in_a_saved_encoder(encoder: tuple[EncoderShim, Path]) -> None:
    shim, directory = encoder
    change(directory, max_position_embeddings=None)
    with pytest.raises(WeightsError, match=r'config\.json has no "max_position_embeddings"'):
        EncoderShim(shim.settings).from_disk(directory)


# Settings that change the form of the output


FORMS: dict[str, Any] = {
    "return_dict": False,
    "torchscript": True,
    "output_hidden_states": True,
    "output_attentions": True,
    "chunk_size_feed_forward": 7,
    "use_cache": False,
}


def assert_same_vectors(source: Path, directory: Path, changes: dict[str, Any]) -> None:
    shim, _ = save_plain(source, directory)
    ops = NumpyOps()
    docs = [BLANK.make_doc(text) for text in SENTENCES]
    expected = shim.predict_docs(docs, ops)
    change(directory, **changes)
    by_name = EncoderShim(replace(shim.settings, name=str(directory)))
    by_name.load_pretrained()
    for encoder in (by_name, EncoderShim(shim.settings).from_disk(directory)):
        for vectors, right in zip(encoder.predict_docs(docs, ops), expected, strict=True):
            np.testing.assert_array_equal(vectors, right)


@pytest.mark.parametrize("name", FORMS)
def test_the_form_of_the_output_changes_nothing(bert_dir: Path, tmp_path: Path, name: str) -> None:
    assert_same_vectors(bert_dir, tmp_path, {name: FORMS[name]})


def test_nor_does_it_in_another_family(encoder_dir: Path, tmp_path: Path) -> None:
    assert_same_vectors(encoder_dir, tmp_path, FORMS)


def test_a_teacher_returns_what_the_distillation_reads(tmp_path: Path) -> None:
    write_teacher(tmp_path, "bert", head=True)
    change(tmp_path, return_dict=False, torchscript=True, chunk_size_feed_forward=7)
    output = load_teacher(str(tmp_path)).model(torch.tensor([[2, 5, 6, 3]]))
    assert output.logits.shape[:2] == (1, 4)


@pytest.mark.parametrize("is_teacher", [False, True])
def test_relative_positions_are_computed_or_refused(tmp_path: Path, is_teacher: bool) -> None:
    """transformers 5 leaves them out without a word."""
    write_teacher(tmp_path, "bert", head=True)
    change(tmp_path, position_embedding_type="relative_key")
    weights = load_file(tmp_path / "model.safetensors")
    for layer in range(4):
        name = f"bert.encoder.layer.{layer}.attention.self.distance_embedding.weight"
        weights[name] = torch.ones(63, 8)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    load = load_teacher if is_teacher else load_encoder
    if transformers.__version__.startswith("4."):
        load(str(tmp_path))
    else:
        with pytest.raises(ConfigError, match=r"'relative_key', which transformers 5.* Install"):
            load(str(tmp_path))


# Weights


def spoil(directory: Path, value: float, place: str = "encoder.layer.1.output.dense.bias") -> None:
    path = directory / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith(place))
    weights[name].view(-1)[3] = value
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(
    encoder: tuple[EncoderShim, Path], tmp_path: Path, value: float
) -> None:
    shim, directory = encoder
    spoil(directory, value)
    for load in (
        lambda: load_encoder(str(directory)),
        lambda: EncoderShim(shim.settings).from_disk(directory),
    ):
        with pytest.raises(WeightsError, match=r"not finite .*in encoder\.layer\.1\.output\.dense"):
            load()
    write_teacher(tmp_path / "teacher", "bert", head=True)
    spoil(tmp_path / "teacher", value)
    with pytest.raises(WeightsError, match=r"teacher\.name = .*not finite .*layer\.1\.output\.den"):
        load_teacher(str(tmp_path / "teacher"))


def test_weights_that_are_whole_numbers_are_named(encoder: tuple[EncoderShim, Path]) -> None:
    shim, directory = encoder
    path = directory / "model.safetensors"
    weights = load_file(path)
    weights["encoder.layer.0.output.dense.weight"] = torch.ones_like(
        weights["encoder.layer.0.output.dense.weight"], dtype=torch.int8
    )
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(
        WeightsError, match=r"has encoder\.layer\.0\.output\.dense\.weight of type torch\.int8"
    ):
        EncoderShim(shim.settings).from_disk(directory)
    if transformers.__version__.startswith("4."):  # version 5 turns them into floats
        with pytest.raises(DistilError):
            load_encoder(str(directory))
