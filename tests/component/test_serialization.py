from __future__ import annotations

import copy
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import transformers
from safetensors import numpy as safetensors

from spacy_distil.component.architectures import DistilTransformer
from spacy_distil.component.shim import EncoderShim
from spacy_distil.engines.files import MODELS, EngineName
from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.export.encoders import SourceEncoder
from spacy_distil.export.graph import Precision
from spacy_distil.runs.digests import SUMS
from tests.util import (
    SENTENCES,
    adam,
    copied,
    encoder_of,
    make_examples,
    make_nlp,
    same,
    torch_model_of,
    weights_of,
    write_encoder,
)

PIPES = ("tagger", "ner", "textcat")


@pytest.fixture(scope="module")
def trained(encoder_dirs: dict[str, Path]) -> Any:
    """Make a pipeline and update it. Tests must not change it."""
    nlp = make_nlp(encoder_dirs["roberta"], PIPES, learn_rate_scale=0.5)
    optimizer = adam(3e-3)
    for _ in range(3):
        nlp.update(make_examples(nlp), sgd=optimizer)
    return nlp


@pytest.fixture
def saved(trained: Any, tmp_path: Path) -> Path:
    """Save that pipeline, for tests that break it."""
    trained.to_disk(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def assert_same_predictions(left: Any, right: Any) -> None:
    for text in (*SENTENCES, "", "  "):
        a, b = left(text), right(text)
        np.testing.assert_array_equal(a.tensor, b.tensor)
        assert [token.tag_ for token in a] == [token.tag_ for token in b]
        assert a.to_json()["ents"] == b.to_json()["ents"]
        assert a.cats == pytest.approx(b.cats, abs=1e-6)


# Round trips


def test_disk(trained: Any, saved: Path, bert_dir: Path) -> None:
    assert_same_predictions(trained, spacy.load(saved))
    # Into a pipeline that exists and has other weights.
    other = make_nlp(bert_dir, PIPES, learn_rate_scale=0.5)
    assert_same_predictions(trained, other.from_disk(saved))


def test_bytes(trained: Any, encoder_dirs: dict[str, Path]) -> None:
    for initialize in (False, True):
        other = make_nlp(encoder_dirs["bert"], PIPES, initialize=initialize)
        assert_same_predictions(trained, other.from_bytes(trained.to_bytes()))


def test_component_alone(trained: Any, bert_dir: Path, tmp_path: Path) -> None:
    pipe = trained.get_pipe("transformer")
    pipe.to_disk(tmp_path)
    for load in (
        lambda other: other.from_disk(tmp_path),
        lambda other: other.from_bytes(pipe.to_bytes()),
    ):
        other = make_nlp(bert_dir, initialize=False).get_pipe("transformer")
        assert load(other) is other
        docs = [trained.make_doc(text) for text in SENTENCES]
        for a, b in zip(pipe.predict(docs), other.predict(docs), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_pipeline_without_weights_goes_through_bytes(bert_dir: Path) -> None:
    blank = make_nlp(bert_dir, initialize=False)
    other = make_nlp(bert_dir, initialize=False).from_bytes(blank.to_bytes())
    assert not encoder_of(other).is_loaded


@pytest.mark.parametrize("how", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
def test_pickle_and_deepcopy(trained: Any, how: Callable[[Any], Any]) -> None:
    docs = [trained.make_doc(text) for text in SENTENCES]
    pipe = trained.get_pipe("transformer")
    for original, duplicate in ((pipe, how(pipe)), (pipe.model, how(pipe.model))):
        assert duplicate is not original
        for a, b in zip(original.predict(docs), duplicate.predict(docs), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_head_goes_through_pickle(trained: Any) -> None:
    tagger = pickle.loads(pickle.dumps(trained.get_pipe("tagger").model))
    doc = trained(SENTENCES[0])
    for a, b in zip(trained.get_pipe("tagger").predict([doc]), tagger.predict([doc]), strict=True):
        np.testing.assert_array_equal(np.argmax(b, -1), a)


@pytest.mark.parametrize("how", [lambda m: m.copy(), copy.deepcopy])
def test_a_copy_learns_on_its_own(bert_dir: Path, how: Callable[[Any], Any]) -> None:
    nlp = make_nlp(bert_dir)
    model = nlp.get_pipe("transformer").model
    duplicate = how(model)
    before = weights_of(nlp)
    vectors, backprop = duplicate.begin_update([nlp.make_doc(SENTENCES[0])])
    backprop(vectors)
    duplicate.finish_update(adam())
    assert same(before, weights_of(nlp), atol=0)
    (shim,) = duplicate.shims
    assert not same(before, copied(shim.engine.model), atol=1e-5)


def test_saving_takes_in_what_was_learned_last(bert_dir: Path) -> None:
    """The last head is silent, so a step waits."""
    nlp, reference = make_nlp(bert_dir, ["tagger", "ner"]), make_nlp(bert_dir, ["tagger", "ner"])
    nlp.update(make_examples(nlp, drop=["entities"]), sgd=adam())
    reference.update(make_examples(reference, drop=["entities"]), sgd=False)
    for _, pipe in reference.pipeline:
        pipe.finish_update(adam())
    other = make_nlp(bert_dir, ["tagger", "ner"]).from_bytes(nlp.to_bytes())
    assert same(weights_of(reference), weights_of(other))


def test_training_goes_on_after_loading(saved: Path) -> None:
    nlp = spacy.load(saved)
    before = weights_of(nlp)
    optimizer = nlp.resume_training()
    nlp.update(make_examples(nlp), sgd=optimizer)
    assert not same(before, weights_of(nlp), atol=1e-5)


def test_sourced_into_another_pipeline(trained: Any, saved: Path) -> None:
    nlp = spacy.blank("en")
    source = spacy.load(saved)
    for name in ("transformer", "tagger"):
        nlp.add_pipe(name, source=source)
    assert [t.tag_ for t in nlp(SENTENCES[0])] == [t.tag_ for t in trained(SENTENCES[0])]


# Files


def test_three_files_and_no_pickle(saved: Path) -> None:
    files = {path.name: path.read_bytes() for path in (saved / "transformer").iterdir()}
    assert files.keys() == {"config.json", "model.safetensors", "tokenizer.json", SUMS}
    assert json.loads(files["config.json"])["model_type"] == "roberta"
    json.loads(files["tokenizer.json"])
    header = int.from_bytes(files["model.safetensors"][:8], "little")
    json.loads(files["model.safetensors"][8 : 8 + header])


def test_the_folder_is_a_hugging_face_model(trained: Any, saved: Path) -> None:
    model, info = transformers.AutoModel.from_pretrained(
        saved / "transformer", output_loading_info=True
    )
    assert all("pooler" in name for name in info["missing_keys"])
    assert not info["unexpected_keys"]
    ours = weights_of(trained)
    assert same(ours, {name: copied(model)[name] for name in ours}, atol=0)
    # And can be the start of another pipeline.
    other = make_nlp(saved / "transformer")
    np.testing.assert_array_equal(other(SENTENCES[0]).tensor, trained(SENTENCES[0]).tensor)


def test_loading_does_not_touch_the_network(
    trained: Any, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not touch the original directory of the encoder either."""
    import huggingface_hub.constants

    config = saved / "config.cfg"
    name = trained.config["components"]["transformer"]["model"]["name"]
    config.write_text(config.read_text().replace(name, "somebody/no-such-model"))

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert_same_predictions(trained, spacy.load(saved))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    path = saved / "transformer" / name
    path.unlink()
    with pytest.raises(WeightsError, match=f"{path} is missing"):
        spacy.load(saved)


def test_a_missing_folder_is_named(saved: Path) -> None:
    shutil.rmtree(saved / "transformer")
    with pytest.raises(WeightsError, match=f"encoder in {saved / 'transformer'} cannot be loaded"):
        spacy.load(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_truncated_file_is_named(saved: Path, name: str) -> None:
    path = saved / "transformer" / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=name) as error:
        spacy.load(saved)
    assert str(saved / "transformer") in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", r"model\.safetensors do not fit config\.json"),
        ("model.safetensors", r"model\.safetensors do not fit config\.json"),
        (
            "tokenizer.json",
            "The tokenizer has pieces up to number 414, .* for 276 only",
        ),
    ],
)
def test_a_file_of_another_encoder_is_named(
    bert_dir: Path, encoder_dirs: dict[str, Path], tmp_path: Path, name: str, message: str
) -> None:
    make_nlp(bert_dir, ["tagger"]).to_disk(tmp_path)
    other = encoder_dirs["distilbert" if name != "tokenizer.json" else "roberta"]
    shutil.copy(other / name, tmp_path / "transformer" / name)
    with pytest.raises(WeightsError, match=f"{name} has changed since it was written"):
        spacy.load(tmp_path)
    (tmp_path / "transformer" / SUMS).unlink()
    with pytest.raises(WeightsError, match=message) as error:
        spacy.load(tmp_path)
    assert str(tmp_path / "transformer") in str(error.value)


def test_a_setting_that_does_not_fit_the_saved_encoder_is_named(saved: Path) -> None:
    with pytest.raises(ConfigError, match="window = 500: this encoder takes at most 72"):
        spacy.load(saved, config={"components": {"transformer": {"model": {"window": 500}}}})


def test_the_component_can_be_left_out(saved: Path) -> None:
    shutil.rmtree(saved / "transformer")
    nlp = spacy.load(saved, exclude=["transformer"])
    assert "transformer" not in nlp.pipe_names


# Digests


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("engine", ["torch", "onnx"])
@pytest.mark.parametrize("name", ["config.json", "the model", "tokenizer.json", SUMS])
def test_a_flipped_bit_is_named(
    trained: Any, converted: Any, tmp_path: Path, engine: EngineName, name: str
) -> None:
    encoder, folder = encoder_of(trained if engine == "torch" else converted), tmp_path
    encoder.to_disk(folder)
    path = folder / (MODELS[engine] if name == "the model" else name)
    whole = path.read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(flip(whole, place))
        with pytest.raises(WeightsError, match=f"The encoder in {folder} cannot") as error:
            EncoderShim(encoder.settings).from_disk(folder)
        assert path.name in str(error.value) or name == SUMS
        assert f"If you have changed files of the folder on purpose, delete {folder / SUMS}" in str(
            error.value
        )
    path.write_bytes(whole)
    EncoderShim(encoder.settings).from_disk(folder)


def test_weights_are_edited_on_purpose(trained: Any, saved: Path) -> None:
    path = saved / "transformer" / "model.safetensors"
    weights = safetensors.load_file(path)
    name = next(name for name in weights if name.endswith("LayerNorm.bias"))
    weights[name] += 1
    safetensors.save_file(weights, path, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"model\.safetensors has changed"):
        spacy.load(saved)
    (saved / "transformer" / SUMS).unlink()
    edited = spacy.load(saved)
    np.testing.assert_array_equal(weights_of(edited)[name], weights_of(trained)[name] + 1)
    # Saved again, it has digests again.
    edited.to_disk(saved)
    assert (saved / "transformer" / SUMS).is_file()
    np.testing.assert_array_equal(weights_of(spacy.load(saved))[name], weights[name])


def test_sha256sum_checks_the_files(saved: Path) -> None:
    """Its own lines are accepted, too, in any order."""
    folder = saved / "transformer"
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum")
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, check=True)
    names = ["tokenizer.json", "config.json", "model.safetensors"]
    lines = subprocess.run(["sha256sum", *names], cwd=folder, check=True, capture_output=True)
    (folder / SUMS).write_bytes(lines.stdout)
    spacy.load(saved)


def test_git_may_change_the_ends_of_lines(trained: Any, saved: Path) -> None:
    for name in ("config.json", "tokenizer.json", SUMS):
        path = saved / "transformer" / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert_same_predictions(trained, spacy.load(saved))


def test_flipped_bits_of_bytes_are_seen(trained: Any, converted: Any) -> None:
    for nlp in (trained, converted):
        shim = encoder_of(nlp)
        data = shim.to_bytes()
        rng = np.random.default_rng(0)
        for place in (0, len(data) - 1, *rng.integers(0, len(data), 30).tolist()):
            for damaged in (flip(data, place), data[:place]):
                with pytest.raises(WeightsError, match="bytes of an encoder are damaged"):
                    EncoderShim(shim.settings).from_bytes(damaged)


def test_saving_replaces_links(trained: Any, converted: Any, tmp_path: Path) -> None:
    """It does not write through them."""
    for nlp in (trained, converted):
        folder = tmp_path / "pipeline" / "transformer"
        shutil.rmtree(tmp_path / "pipeline", ignore_errors=True)
        folder.mkdir(parents=True)
        for name in encoder_of(nlp).to_files():
            (tmp_path / name).write_text("of another")
            (folder / name).symlink_to(tmp_path / name)
        nlp.to_disk(tmp_path / "pipeline")
        assert not any(path.is_symlink() for path in folder.iterdir())
        for name in encoder_of(nlp).to_files():
            assert (tmp_path / name).read_text() == "of another"
        assert_same_predictions(nlp, spacy.load(tmp_path / "pipeline"))


def test_saving_leaves_hard_links_of_others(trained: Any, saved: Path, tmp_path: Path) -> None:
    """`cp -l` makes copies that share their files."""
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy, copy_function=os.link)
    edited = spacy.load(saved)
    edited.update(make_examples(edited), sgd=edited.resume_training())
    edited.to_disk(saved)
    copied = spacy.load(copy)
    np.testing.assert_array_equal(trained(SENTENCES[0]).tensor, copied(SENTENCES[0]).tensor)


# Listeners replaced by copies of the encoder


def test_replaced_listeners(trained: Any, saved: Path, tmp_path: Path) -> None:
    nlp: Any = spacy.load(saved)
    nlp.replace_listeners("transformer", "tagger", ["model.tok2vec"])
    assert nlp.get_pipe("transformer").listening_components == ["ner", "textcat"]
    assert_same_predictions(trained, nlp)
    nlp.to_disk(tmp_path / "replaced")
    again: Any = spacy.load(tmp_path / "replaced")
    assert_same_predictions(trained, again)
    other = spacy.blank("en").from_config(nlp.config)
    assert_same_predictions(trained, other.from_bytes(nlp.to_bytes()))
    # The copy learns, the shared one does not.
    shared = weights_of(again)
    copy_in_tagger = again.get_pipe("tagger").model.get_ref("tok2vec").shims[0].engine.model
    before = copied(copy_in_tagger)
    again.update(make_examples(again), sgd=adam(), exclude=["transformer", "ner", "textcat"])
    assert not same(before, copied(copy_in_tagger), atol=1e-5)
    assert same(shared, weights_of(again), atol=0)


def test_weights_are_not_initialized_at_loading(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def refuse(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        assert tensor.is_meta, "a random weight"
        return tensor

    for name in ("normal_", "uniform_", "random_", "bernoulli_"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    nlp = spacy.load(saved)
    assert torch_model_of(nlp).device.type != "meta"


# The ONNX engine


@pytest.fixture(scope="module")
def converted(onnx_pipeline: Path) -> Any:
    """Make a pipeline whose encoder runs on ONNX Runtime. Tests must not change it."""
    return spacy.load(onnx_pipeline)


@pytest.fixture
def saved_onnx(converted: Any, tmp_path: Path) -> Path:
    """Save that pipeline, for tests that break it."""
    converted.to_disk(tmp_path / "onnx")
    return tmp_path / "onnx"


def test_onnx_through_disk(converted: Any, onnx_pipeline: Path, saved_onnx: Path) -> None:
    loaded = spacy.load(saved_onnx)
    assert_same_predictions(converted, loaded)
    folders = [
        {path.name: path.read_bytes() for path in (pipeline / "transformer").iterdir()}
        for pipeline in (onnx_pipeline, saved_onnx)
    ]
    assert folders[0].keys() == {"config.json", "model.onnx", "tokenizer.json", SUMS}
    assert folders[0] == folders[1]
    # Into a pipeline that exists and runs another graph.
    name = loaded.config["components"]["transformer"]["model"]["name"]
    untrained = SourceEncoder(encoder_of(make_nlp(name)))
    encoder_of(loaded).from_files(untrained.to_files(Precision()))
    with pytest.raises(AssertionError):
        assert_same_predictions(converted, loaded)
    assert_same_predictions(converted, loaded.from_disk(saved_onnx))


def test_onnx_through_bytes(converted: Any) -> None:
    other = spacy.blank("en").from_config(converted.config)
    assert_same_predictions(converted, other.from_bytes(converted.to_bytes()))


@pytest.mark.parametrize("how", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
def test_onnx_through_pickle_and_deepcopy(converted: Any, how: Callable[[Any], Any]) -> None:
    docs = [converted.make_doc(text) for text in SENTENCES]
    pipe = converted.get_pipe("transformer")
    for original, duplicate in ((pipe, how(pipe)), (pipe.model, how(pipe.model))):
        for a, b in zip(original.predict(docs), duplicate.predict(docs), strict=True):
            np.testing.assert_array_equal(a, b)
    copied = pipe.model.copy()
    assert copied.shims[0].engine is not encoder_of(converted).engine
    for a, b in zip(pipe.predict(docs), copied.predict(docs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_onnx_with_replaced_listeners(converted: Any, saved_onnx: Path, tmp_path: Path) -> None:
    nlp: Any = spacy.load(saved_onnx)
    nlp.replace_listeners("transformer", "tagger", ["model.tok2vec"])
    assert_same_predictions(converted, nlp)
    nlp.to_disk(tmp_path / "replaced")
    assert_same_predictions(converted, spacy.load(tmp_path / "replaced"))


@pytest.mark.parametrize("name", ["config.json", "model.onnx", "tokenizer.json"])
def test_a_missing_or_truncated_file_of_onnx_is_named(saved_onnx: Path, name: str) -> None:
    path = saved_onnx / "transformer" / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=name) as error:
        spacy.load(saved_onnx)
    assert f"The encoder in {saved_onnx / 'transformer'} cannot be loaded" in str(error.value)
    path.unlink()
    with pytest.raises(WeightsError, match=f"{path} is missing"):
        spacy.load(saved_onnx)


def test_another_format_of_onnx_is_named(saved_onnx: Path) -> None:
    path = saved_onnx / "transformer" / "config.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 7'))
    (path.parent / SUMS).unlink()
    with pytest.raises(WeightsError, match=r"model\.onnx has format 7, .* reads format 2"):
        spacy.load(saved_onnx)


def test_a_graph_of_another_encoder_is_named(saved_onnx: Path, tmp_path: Path) -> None:
    other = make_nlp(write_encoder(tmp_path / "narrow", "bert", width=16))
    files = SourceEncoder(encoder_of(other)).to_files(Precision())
    (saved_onnx / "transformer" / "model.onnx").write_bytes(files["model.onnx"])
    (saved_onnx / "transformer" / SUMS).unlink()
    with pytest.raises(WeightsError, match="They do not belong together"):
        spacy.load(saved_onnx)


def test_files_of_the_other_engine_are_named(torch_pipeline: Path, onnx_pipeline: Path) -> None:
    for pipeline, engine, there in (
        (torch_pipeline, "onnx", "model.safetensors is there, which engine = 'torch' runs"),
        (onnx_pipeline, "torch", "model.onnx is there, which engine = 'onnx' runs"),
    ):
        changes = {"components": {"transformer": {"model": {"engine": engine}}}}
        with pytest.raises(WeightsError, match=re.escape(there)):
            spacy.load(pipeline, config=changes)
        nlp = spacy.load(pipeline)
        config = nlp.config
        config["components"]["transformer"]["model"]["engine"] = engine
        with pytest.raises(WeightsError, match=re.escape(there)):
            spacy.blank("en").from_config(config).from_bytes(nlp.to_bytes())


def test_an_encoder_is_initialized_from_onnx_files(converted: Any, onnx_pipeline: Path) -> None:
    nlp = make_nlp(onnx_pipeline / "transformer", engine="onnx")
    np.testing.assert_array_equal(nlp(SENTENCES[0]).tensor, converted(SENTENCES[0]).tensor)
    assert nlp.meta["requirements"] == ["spacy-distil>=0.1.0,<0.2.0"]


def test_another_engine_is_refused_by_name(bert_dir: Path) -> None:
    with pytest.raises(ConfigError, match="engine = 'jax': expected one of torch, onnx"):
        DistilTransformer(str(bert_dir), engine="jax")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="threads = 0: expected at least 1"):
        DistilTransformer(str(bert_dir), threads=0)
