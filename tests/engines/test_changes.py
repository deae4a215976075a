"""Settings that change an encoder as it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
import transformers
from thinc.api import NumpyOps

from spacy_distil.encoding import Batch, PieceTokenizer, make_batches
from spacy_distil.engines.changes import EncoderChanges
from spacy_distil.engines.torch import TorchEngine
from spacy_distil.errors import ConfigError
from spacy_distil.export.quantize import quantize
from tests.util import SENTENCES, adam, encoder_of, make_examples, make_nlp, write_encoder

OPS = NumpyOps()


def batch_for(directory: Path) -> Batch:
    tokenizer = PieceTokenizer.from_str((directory / "tokenizer.json").read_bytes())
    (batch,) = make_batches(
        [pieces.ids for pieces in tokenizer(SENTENCES)],
        prefix=tokenizer.prefix,
        suffix=tokenizer.suffix,
        pad_id=0,
        max_batch_pieces=10_000,
    )
    return batch


def load(directory: Path, **settings: Any) -> Any:
    return TorchEngine.from_name(str(directory), device="cpu", **settings)


# layer


def test_a_layer_is_that_of_the_whole_encoder(encoder_dir: Path) -> None:
    whole, batch = load(encoder_dir), batch_for(encoder_dir)
    for layer in range(1, whole.n_layers + 1):
        engine = load(encoder_dir, layer=layer)
        assert engine.n_layers == layer
        expected = torch.from_numpy(whole.predict(batch, OPS, [layer]))
        if layer < whole.n_layers and hasattr(whole.model, "final_norm"):
            # The norm behind the last layer, where a family has one, comes behind this one.
            expected = whole.model.final_norm(expected).detach()
        np.testing.assert_allclose(engine.predict(batch, OPS), expected, rtol=0, atol=1e-5)


def test_layers_above_are_neither_loaded_nor_saved(encoder_dir: Path) -> None:
    engine, batch = load(encoder_dir, layer=1), batch_for(encoder_dir)
    whole = load(encoder_dir)
    files = engine.to_files()
    if engine.model.config.model_type == "albert":  # whose layers share their weights
        assert engine.n_parameters == whole.n_parameters
    else:
        assert engine.n_parameters < whole.n_parameters
        assert len(files["model.safetensors"]) < len(whole.to_files()["model.safetensors"])
    expected = engine.predict(batch, OPS)
    # With the setting and without; and from the files of the whole encoder.
    for saved, settings in ((files, {}), (files, {"layer": 1}), (whole.to_files(), {"layer": 1})):
        again = TorchEngine.from_files(saved, device="cpu", **settings)
        np.testing.assert_array_equal(again.predict(batch, OPS), expected)


def test_a_layer_that_is_not_there_is_named(bert_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"layer = 3: this encoder has 2 layers\. .* 1 to 2"):
        load(bert_dir, layer=3)
    with pytest.raises(ConfigError, match="layer = 0: expected at least 1"):
        make_nlp(bert_dir, layer=0)


def test_layers_that_share_weights_in_groups_are_not_cut() -> None:
    config = transformers.AlbertConfig(num_hidden_layers=4, num_hidden_groups=2)
    EncoderChanges(layer=4).apply(config)
    with pytest.raises(ConfigError, match=r"layer = 3: .* 2 groups of layers among 4"):
        EncoderChanges(layer=3).apply(config)


def test_a_pipeline_on_an_inner_layer_learns_and_runs_in_int8(
    bert_dir: Path, tmp_path: Path
) -> None:
    nlp = make_nlp(bert_dir, ["tagger"], layer=1)
    nlp.update(make_examples(nlp), sgd=adam())
    expected = nlp(SENTENCES[0]).tensor
    nlp.to_disk(tmp_path / "torch")
    np.testing.assert_array_equal(spacy.load(tmp_path / "torch")(SENTENCES[0]).tensor, expected)
    quantize(tmp_path / "torch", tmp_path / "onnx", precision="fp32")
    converted = spacy.load(tmp_path / "onnx")
    assert encoder_of(converted).n_layers == 1
    np.testing.assert_allclose(converted(SENTENCES[0]).tensor, expected, rtol=0, atol=1e-5)


def test_a_graph_of_another_layer_is_named(onnx_pipeline: Path) -> None:
    override = {"components": {"transformer": {"model": {"layer": 1}}}}
    with pytest.raises(ConfigError, match="layer = 1: the graph of this encoder ends with layer 2"):
        spacy.load(onnx_pipeline, config=override)


# dropout


def test_dropout_is_a_setting(encoder_dir: Path) -> None:
    """It changes the dropout of hidden states. The dropout of attention probabilities is 0 here."""
    batch, plain = batch_for(encoder_dir), load(encoder_dir)
    expected = plain.predict(batch, OPS)
    for dropping in (
        load(encoder_dir, dropout=0.25),
        TorchEngine.from_files(plain.to_files(), device="cpu", dropout=0.25),
    ):
        rows: Any = dropping.begin_update(batch, OPS)[0]
        assert np.abs(rows - expected).max() > 0.01
        np.testing.assert_array_equal(dropping.predict(batch, OPS), expected)


def test_dropout_can_be_switched_off(dropout_dir: Path) -> None:
    engine, batch = load(dropout_dir, dropout=0.0, attention_dropout=0.0), batch_for(dropout_dir)
    rows: Any = engine.begin_update(batch, OPS)[0]
    np.testing.assert_allclose(rows, engine.predict(batch, OPS), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (EncoderChanges(dropout=0.1), "^dropout = 0.1: a 'x' encoder has no such setting"),
        (EncoderChanges(attention_dropout=0.1), "^attention_dropout = 0.1: a 'x' encoder has no"),
    ],
)
def test_a_family_without_the_setting_is_named(changes: EncoderChanges, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changes.apply(_Bare())


class _Bare(transformers.PretrainedConfig):
    model_type = "x"


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_cannot_be_is_named(bert_dir: Path, share: float) -> None:
    with pytest.raises(ConfigError, match=f"dropout = {share}: expected null, or 0 to below 1"):
        make_nlp(bert_dir, dropout=share)


def test_settings_survive_saving(tmp_path: Path) -> None:
    nlp = make_nlp(write_encoder(tmp_path / "encoder", "bert"), dropout=0.25, layer=1)
    nlp.to_disk(tmp_path / "nlp")
    settings = encoder_of(spacy.load(tmp_path / "nlp")).settings
    assert (settings.dropout, settings.layer) == (0.25, 1)


# Configs that another version of transformers has written


def test_a_modernbert_of_transformers_5_is_read(encoder_dirs: Any) -> None:
    """Version 5 has other names for the frequencies of positions, and lists the attention of each
    layer.
    """
    engine, batch = load(encoder_dirs["modernbert"]), batch_for(encoder_dirs["modernbert"])
    files = engine.to_files()
    config = json.loads(files["config.json"])
    n_layers = config["num_hidden_layers"]
    kinds = ["full_attention" if i % 2 == 0 else "sliding_attention" for i in range(n_layers)]
    older = {k: v for k, v in config.items() if k not in ("rope_parameters", "layer_types")}
    older |= {"global_rope_theta": 900.0, "local_rope_theta": 70.0}
    older["global_attn_every_n_layers"] = 2
    names = ("global_rope_theta", "local_rope_theta", "global_attn_every_n_layers")
    newer = {k: v for k, v in older.items() if k not in names}
    newer["layer_types"] = kinds
    newer["rope_parameters"] = {
        "full_attention": {"rope_theta": 900.0, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 70.0, "rope_type": "default"},
    }
    found = []
    for version in (older, newer):
        saved = {**files, "config.json": json.dumps(version).encode()}
        found.append(TorchEngine.from_files(saved, device="cpu").predict(batch, OPS))
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-6)
    assert np.abs(found[0] - engine.predict(batch, OPS)).max() > 1e-3
