"""Masked-LM heads against transformers' own logits, and new heads on bare encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

from spacy_distil.students.families import FAMILIES
from spacy_distil.students.masked_lm_heads import add_masked_lm_head, masked_lm_head
from spacy_distil.students.teachers import load_teacher

TeacherDir = Callable[..., Path]
each_family = pytest.mark.parametrize("family", FAMILIES)
PIECES = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(2))


@each_family
def test_head_gives_the_logits_of_the_model(teacher_dir: TeacherDir, family: str) -> None:
    model = load_teacher(str(teacher_dir(family, head=True))).model
    with torch.no_grad():
        for parameter in model.parameters():  # biases too
            parameter += 0.1 * torch.randn_like(parameter)
        expected = model(input_ids=PIECES).logits
        head = masked_lm_head(model)
        assert head is not None
        features = head.transform(model.base_model(input_ids=PIECES)[0])
        actual = head.decode(features)
    assert features.shape[-1] == (8 if family in ("electra", "albert") else 16)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@each_family
def test_new_head_does_not_change_the_encoder(teacher_dir: TeacherDir, family: str) -> None:
    encoder = load_teacher(str(teacher_dir(family, head=False))).model
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    model = add_masked_lm_head(encoder)
    inner = model.base_model.state_dict()
    assert inner.keys() == before.keys()
    assert not any("pooler" in key for key in inner)
    for key, value in before.items():
        assert torch.equal(inner[key], value)
        assert torch.equal(encoder.state_dict()[key], value)
        assert inner[key].data_ptr() != encoder.state_dict()[key].data_ptr()
    with torch.no_grad():
        assert torch.equal(model.base_model(PIECES)[0], encoder(PIECES)[0])
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@each_family
def test_new_head_is_tied_and_saved(teacher_dir: TeacherDir, tmp_path: Path, family: str) -> None:
    encoder = load_teacher(str(teacher_dir(family, head=False))).model
    encoder.config.tie_word_embeddings = False
    model = add_masked_lm_head(encoder)
    decoder = model.get_output_embeddings()
    assert decoder.weight is model.get_input_embeddings().weight
    assert not decoder.bias.any()
    with torch.no_grad():
        decoder.bias += torch.randn_like(decoder.bias)
        expected = model(PIECES).logits
    model.save_pretrained(tmp_path)
    again, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(PIECES).logits, expected, rtol=1e-5, atol=1e-5)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


@each_family
def test_new_head_starts_by_passing_hidden_states_on(teacher_dir: TeacherDir, family: str) -> None:
    """It undoes the projection of the embeddings, if the family has one."""
    encoder = load_teacher(str(teacher_dir(family, head=False))).model
    head = masked_lm_head(add_masked_lm_head(encoder))
    assert head is not None
    embedded = torch.randn(5, head.weight.shape[1])
    weights = encoder.state_dict()
    hidden = embedded
    for name in ("embeddings_project", "encoder.embedding_hidden_mapping_in"):
        if f"{name}.weight" in weights:
            hidden = hidden @ weights[f"{name}.weight"].T
    assert hidden.shape[1] == 16
    expected = torch.nn.functional.gelu(embedded)
    if family == "albert":
        expected = torch.nn.functional.gelu(embedded, approximate="tanh")
    expected = torch.nn.functional.layer_norm(expected, expected.shape[1:], eps=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(head.transform(hidden), expected, rtol=1e-3, atol=1e-3)


def test_new_head_learns(teacher_dir: TeacherDir) -> None:
    """Transform and decoder learn, and so do the tied embeddings."""
    torch.manual_seed(0)
    model = add_masked_lm_head(load_teacher(str(teacher_dir("electra", head=False))).model)
    head = masked_lm_head(model)
    assert head is not None
    logits = head.decode(head.transform(model.base_model(PIECES)[0]))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), PIECES.flatten()).backward()
    unmoved = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [name for name in unmoved if "key.bias" not in name]
