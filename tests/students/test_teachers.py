"""Teachers of every family, with and without masked-LM head, against transformers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertForPreTraining, ElectraForPreTraining

from spacy_distil.engines.pretrained import load_encoder, save_encoder
from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.runs.digests import SUMS
from spacy_distil.students.families import FAMILIES
from spacy_distil.students.masked_lm_heads import masked_lm_head
from spacy_distil.students.teachers import load_teacher

TeacherDir = Callable[..., Path]
each_family = pytest.mark.parametrize("family", FAMILIES)


@each_family
@pytest.mark.parametrize("head", [True, False])
def test_teacher_is_loaded_frozen_and_its_head_detected(
    teacher_dir: TeacherDir, family: str, head: bool
) -> None:
    teacher = load_teacher(str(teacher_dir(family, head=head)))
    assert teacher.has_mlm_head is head
    assert (masked_lm_head(teacher.model) is not None) is head
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    saved = load_file(teacher_dir(family, head=head) / "model.safetensors")
    loaded = teacher.model.state_dict()
    compared = [key for key in saved if "pooler" not in key]
    assert len(compared) > 35
    for key in compared:
        torch.testing.assert_close(loaded[key], saved[key], rtol=0, atol=0)


@each_family
def test_hidden_states_are_those_of_transformers(teacher_dir: TeacherDir, family: str) -> None:
    """Full blocks have no mask, padded blocks have one."""
    path = teacher_dir(family, head=True)
    teacher = load_teacher(str(path))
    reference = AutoModel.from_pretrained(path, attn_implementation="eager").eval()
    pieces = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(pieces)
    with torch.no_grad():
        for lengths in ([9, 9, 9], [9, 4, 7]):
            for row, length in enumerate(lengths):
                pieces[row, length:] = teacher.tokenizer.pad_token_id
                mask[row, length:] = 0
            full = min(lengths) == 9
            actual = teacher.model.base_model(
                input_ids=pieces,
                attention_mask=None if full else mask,
                output_hidden_states=True,
                return_dict=True,
            )
            # transformers gets one block at a time, with all inputs that it takes.
            for row, length in enumerate(lengths):
                alone = pieces[row : row + 1, :length]
                types = {} if family in ("distilbert", "mpnet") else {"token_type_ids": 0 * alone}
                expected = reference(
                    input_ids=alone,
                    attention_mask=torch.ones_like(alone),
                    output_hidden_states=True,
                    **types,
                )
                assert len(actual.hidden_states) == 5
                for ours, theirs in zip(
                    (*actual.hidden_states, actual.last_hidden_state),
                    (*expected.hidden_states, expected.last_hidden_state),
                    strict=True,
                ):
                    torch.testing.assert_close(ours[row, :length], theirs[0], rtol=1e-4, atol=1e-4)


def test_electra_discriminator_has_no_masked_lm_head(
    teacher_dir: TeacherDir, tmp_path: Path
) -> None:
    config = load_teacher(str(teacher_dir("electra", head=True))).model.config
    path = shutil.copytree(teacher_dir("electra", head=True), tmp_path / "discriminator")
    discriminator = ElectraForPreTraining(config)
    discriminator.save_pretrained(path)
    teacher = load_teacher(str(path))
    assert not teacher.has_mlm_head
    weights = discriminator.electra.state_dict()
    assert weights.keys() == teacher.model.state_dict().keys()
    for key, value in teacher.model.state_dict().items():
        assert torch.equal(value, weights[key])


def test_checkpoint_with_several_heads_has_its_masked_lm_head(
    teacher_dir: TeacherDir, tmp_path: Path
) -> None:
    config = load_teacher(str(teacher_dir("bert", head=True))).model.config
    path = shutil.copytree(teacher_dir("bert", head=True), tmp_path / "pretraining")
    BertForPreTraining(config).save_pretrained(path)
    assert load_teacher(str(path)).has_mlm_head


@each_family
def test_checkpoint_that_repeats_its_tied_decoder(
    teacher_dir: TeacherDir, tmp_path: Path, family: str
) -> None:
    """Older checkpoints hold the embeddings twice."""
    path = shutil.copytree(teacher_dir(family, head=True), tmp_path / "twice")
    model = load_teacher(str(path)).model
    whole = {key: value.clone() for key, value in model.state_dict().items()}
    save_file(whole, path / "model.safetensors", metadata={"format": "pt"})
    again = load_teacher(str(path))
    assert again.has_mlm_head
    assert again.model.get_output_embeddings().weight is again.model.get_input_embeddings().weight


def test_half_precision_checkpoint_is_loaded_in_float32(
    teacher_dir: TeacherDir, tmp_path: Path
) -> None:
    path = shutil.copytree(teacher_dir("bert", head=True), tmp_path / "half")
    weights = load_file(path / "model.safetensors")
    half = {key: value.half() for key, value in weights.items()}
    save_file(half, path / "model.safetensors", metadata={"format": "pt"})
    teacher = load_teacher(str(path))
    assert {p.dtype for p in teacher.model.parameters()} == {torch.float32}


def test_tokenizer_neither_truncates_nor_pads(teacher_dir: TeacherDir) -> None:
    teacher = load_teacher(str(teacher_dir("bert", head=True)))
    backend = teacher.tokenizer.backend_tokenizer
    assert len(backend.encode("ba be").ids) == 2
    assert len(backend.encode("ba be bi " * 10).ids) == 30


@each_family
def test_longest_block(teacher_dir: TeacherDir, family: str) -> None:
    """RoBERTa's 34 positions and BERT's 32 both have room for blocks of 32."""
    teacher = load_teacher(str(teacher_dir(family, head=True)))
    assert teacher.longest_block == 32
    with torch.no_grad():
        teacher.model(input_ids=torch.full((1, 32), 9))
    with torch.no_grad(), pytest.raises((IndexError, RuntimeError)):
        teacher.model(input_ids=torch.full((1, 33), 9))


def test_fingerprint_follows_the_weights(teacher_dir: TeacherDir, tmp_path: Path) -> None:
    original = teacher_dir("bert", head=True)
    path = shutil.copytree(original, tmp_path / "other")
    before = load_teacher(str(original)).fingerprint
    assert load_teacher(str(path)).fingerprint == before
    weights = load_file(path / "model.safetensors")
    next(iter(weights.values())).flatten()[0] += 1
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    assert load_teacher(str(path)).fingerprint != before


def test_missing_teacher_is_named() -> None:
    with pytest.raises(
        WeightsError, match=r"teacher\.name = 'no/such/dir' cannot be loaded"
    ) as error:
        load_teacher("no/such/dir")
    assert "it is neither a directory here nor a model" in str(error.value)


def test_truncated_weights_are_named(teacher_dir: TeacherDir, tmp_path: Path) -> None:
    path = shutil.copytree(teacher_dir("bert", head=True), tmp_path / "cut")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="complete Hugging Face model directory"):
        load_teacher(str(path))


@pytest.mark.parametrize("family", ["bert", "electra", "mpnet"])
def test_config_with_more_layers_than_weights_is_refused(
    teacher_dir: TeacherDir, tmp_path: Path, family: str
) -> None:
    path = shutil.copytree(teacher_dir(family, head=True), tmp_path / "tall")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(WeightsError, match=r"lacks \d+ weights of the encoder.*layer\.4"):
        load_teacher(str(path))


@pytest.mark.slow
def test_pickled_weights_are_not_read(
    teacher_dir: TeacherDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how to convert them, in one command."""
    whole = teacher_dir("bert", head=True)
    path = Path(shutil.copytree(whole, tmp_path / "teacher"))
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin\) are never read") as error:
        load_teacher(str(path))
    (command,) = re.findall(r'python -c "(.*)"', str(error.value))
    monkeypatch.chdir(path)
    subprocess.run([sys.executable, "-c", command], check=True)
    assert load_teacher(str(path)).fingerprint == load_teacher(str(whole)).fingerprint


def test_a_saved_encoder_has_digests(teacher_dir: TeacherDir, tmp_path: Path) -> None:
    teacher = load_teacher(str(teacher_dir("bert", head=True)))
    save_encoder(teacher.model, teacher.tokenizer, tmp_path)
    assert load_teacher(str(tmp_path)).fingerprint == teacher.fingerprint
    load_encoder(str(tmp_path))
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        path = tmp_path / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        for load in (load_teacher, load_encoder):
            with pytest.raises(WeightsError, match=f"{path} has changed.*delete .*{SUMS}"):
                load(str(tmp_path))
        path.unlink()
        with pytest.raises(WeightsError, match=f"{path} cannot be read"):
            load_encoder(str(tmp_path))
        path.write_bytes(whole)
    load_encoder(str(tmp_path))


def test_a_tokenizer_that_fails_on_text_is_refused(teacher_dir: TeacherDir, tmp_path: Path) -> None:
    path = Path(shutil.copytree(teacher_dir("bert", head=True), tmp_path / "teacher"))
    saved = json.loads((path / "tokenizer.json").read_text())
    saved["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "a"}
    (path / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(WeightsError, match=r"The tokenizer of teacher\.name = .* fails on text"):
        load_teacher(str(path))


def test_other_families_are_refused(teacher_dir: TeacherDir, tmp_path: Path) -> None:
    path = shutil.copytree(teacher_dir("bert", head=True), tmp_path / "gpt")
    (path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ConfigError, match=r"type 'gpt2'.*bert, distilbert, roberta"):
        load_teacher(str(path))
