"""Recorded queries, keys and values against plain products of weights and hidden states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, GPT2Config, GPT2Model, PreTrainedModel

from spacy_distil.distillation.encoder.attention_taps import AttentionTaps
from spacy_distil.errors import ConfigError

TeacherDir = Callable[..., Path]
# Names of the weights of layer 4 of 4 in published checkpoints.
NAMES = {
    "bert": [f"encoder.layer.3.attention.self.{role}" for role in ("query", "key", "value")],
    "distilbert": [f"transformer.layer.3.attention.{role}_lin" for role in "qkv"],
    "mpnet": [f"encoder.layer.3.attention.attn.{role}" for role in "qkv"],
    "albert": [
        f"encoder.albert_layer_groups.1.albert_layers.0.attention.{role}"
        for role in ("query", "key", "value")
    ],
}
for like_bert in ("roberta", "xlm-roberta", "camembert", "electra"):
    NAMES[like_bert] = NAMES["bert"]


@pytest.fixture
def pieces() -> Tensor:
    return torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(5))


def load(teacher_dir: TeacherDir, family: str) -> PreTrainedModel:
    return AutoModel.from_pretrained(teacher_dir(family, head=False)).eval()


def name_in_layer(name: str, family: str, layer: int) -> str:
    """The name of a weight in another layer. ALBERT's 4 layers are 2 groups."""
    if family == "albert":
        return name.replace(".1.", f".{(layer - 1) // 2}.")
    return name.replace(".3.", f".{layer - 1}.")


@pytest.mark.parametrize("family", NAMES)
def test_queries_keys_and_values_of_a_layer(
    teacher_dir: TeacherDir, pieces: Tensor, family: str
) -> None:
    model = load(teacher_dir, family)
    weights = model.state_dict()
    hidden = model(input_ids=pieces, output_hidden_states=True).hidden_states
    taps = AttentionTaps(model, [4, 1, 3])
    for _ in range(2):  # the second pass replaces the first record
        model(input_ids=pieces)
    recorded = taps.take()
    assert list(recorded) == [1, 3, 4]
    for layer, attention in recorded.items():
        for name, found in zip(NAMES[family], attention, strict=True):
            name = name_in_layer(name, family, layer)
            weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            expected = hidden[layer - 1] @ weight.T + bias
            assert found.shape == (3, 9, 16)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", NAMES)
def test_gradients_flow_through_recorded_tensors(
    teacher_dir: TeacherDir, pieces: Tensor, family: str
) -> None:
    model = load(teacher_dir, family)
    taps = AttentionTaps(model, [2])
    model(input_ids=pieces)
    torch.cat(taps.take()[2]).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    reached = [f"{name_in_layer(name, family, 2)}.weight" for name in NAMES[family]]
    for name in (*reached, "embeddings.word_embeddings.weight"):
        assert gradients[name].norm() > 0


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_attention_kernel_and_result_do_not_change(
    teacher_dir: TeacherDir, pieces: Tensor, family: str
) -> None:
    model = load(teacher_dir, family)
    implementation = model.config._attn_implementation
    before = model(input_ids=pieces).last_hidden_state
    taps = AttentionTaps(model, [1, 2])
    assert torch.equal(model(input_ids=pieces).last_hidden_state, before)
    assert model.config._attn_implementation == implementation == "sdpa"
    taps.remove()
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_only_chosen_layers_are_hooked(teacher_dir: TeacherDir) -> None:
    model = load(teacher_dir, "bert")
    AttentionTaps(model, [3])
    hooked = {name for name, module in model.named_modules() if module._forward_hooks}
    assert hooked == {name_in_layer(name, "bert", 3) for name in NAMES["bert"]}
    model = load(teacher_dir, "bert")
    taps = AttentionTaps(model, [])
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert taps.take() == {}


def test_a_model_with_a_head_is_tapped_in_its_encoder(
    teacher_dir: TeacherDir, pieces: Tensor
) -> None:
    model = AutoModelForMaskedLM.from_pretrained(teacher_dir("bert", head=True)).eval()
    taps = AttentionTaps(model, [4])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model.base_model(input_ids=pieces)
    queries = taps.take()[4].queries
    assert queries.dtype == torch.bfloat16
    assert not queries.requires_grad


def test_take_and_a_failed_pass_leave_nothing_in_memory(
    teacher_dir: TeacherDir, pieces: Tensor
) -> None:
    model = load(teacher_dir, "albert")
    taps = AttentionTaps(model, [1, 2])
    model(input_ids=pieces)
    taps.take()
    assert not taps._recorded
    block = model.encoder.albert_layer_groups[1].register_forward_pre_hook(stop)
    with pytest.raises(MemoryError):
        model(input_ids=pieces)
    block.remove()
    model(input_ids=pieces[:1])
    assert taps.take()[2].queries.shape == (1, 9, 16)


def stop(*_: object) -> None:
    raise MemoryError


def test_unknown_families_and_layers_are_named(teacher_dir: TeacherDir) -> None:
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=8)
    with pytest.raises(ConfigError, match=r"type 'gpt2'.*bert, distilbert, roberta"):
        AttentionTaps(GPT2Model(config), [1])
    with pytest.raises(ConfigError, match=r"layer 5: .* from 1 to 4"):
        AttentionTaps(load(teacher_dir, "bert"), [5])
