"""Operations counted from configs, against torch's counter on running models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForMaskedLM, PretrainedConfig

from spacy_distil.errors import ConfigError
from spacy_distil.students.flops import encoder_flops, mlm_head_flops
from spacy_distil.students.masked_lm_heads import masked_lm_head

BLOCKS, LENGTH = 3, 20
COMMON: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "bert": transformers.BertConfig(**COMMON),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=50, dim=16, n_layers=3, n_heads=2, hidden_dim=40, max_position_embeddings=32
    ),
    "roberta": transformers.RobertaConfig(**COMMON),
    "electra": transformers.ElectraConfig(**COMMON, embedding_size=8),
    "electra, as wide as its embeddings": transformers.ElectraConfig(**COMMON, embedding_size=16),
    "mpnet": transformers.MPNetConfig(**COMMON),
    "albert": transformers.AlbertConfig(**COMMON, embedding_size=8),
    "albert, as wide as its embeddings": transformers.AlbertConfig(**COMMON, embedding_size=16),
    "albert, groups of two layers": transformers.AlbertConfig(**COMMON, inner_group_num=2),
}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("name", "attention"),
    # transformers 4 has SDPA for these.
    [*((name, "eager") for name in CONFIGS), ("bert", "sdpa"), ("roberta", "sdpa")],
)
def test_encoder_is_counted_as_torch_counts(name: str, attention: str, backward: bool) -> None:
    config = CONFIGS[name]
    model = AutoModel.from_config(config, attn_implementation=attention)
    pieces = torch.randint(5, 50, (BLOCKS, LENGTH))
    # torch does not count the CPU's fused kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hidden = model(input_ids=pieces).last_hidden_state
        if backward:
            hidden.sum().backward()
    pooler = 0
    if getattr(model, "pooler", None) is not None:  # runs forward only
        pooler = 2 * 16 * 16 * BLOCKS
    counted = (counter.get_total_flops() - pooler) / (BLOCKS * LENGTH)
    assert encoder_flops(config, LENGTH, backward=backward) == pytest.approx(counted, rel=1e-9)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta"])
def test_head_is_counted_as_torch_counts(name: str, backward: bool) -> None:
    head = masked_lm_head(AutoModelForMaskedLM.from_config(CONFIGS[name]))
    assert head is not None
    hidden = torch.randn(7, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        logits = head.decode(head.transform(hidden))
        if backward:
            logits.sum().backward()
    counted = counter.get_total_flops() / 7
    assert mlm_head_flops(CONFIGS[name], backward=backward) == pytest.approx(counted, rel=1e-9)


@pytest.mark.parametrize("name", ["electra", "albert"])
def test_head_decodes_from_narrow_embeddings(name: str) -> None:
    """The head costs the difference between the whole model and its encoder."""
    model = AutoModelForMaskedLM.from_config(CONFIGS[name])
    pieces = torch.randint(5, 50, (BLOCKS, LENGTH))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=pieces)
    actual = counter.get_total_flops() / (BLOCKS * LENGTH) - encoder_flops(CONFIGS[name], LENGTH)
    assert mlm_head_flops(CONFIGS[name]) == pytest.approx(actual, rel=1e-9)


def test_distilling_bert_base_takes_501_megaflops_a_piece() -> None:
    """6 layers, blocks of 512, masked-LM head at 15 % of the pieces, backward in the student."""
    teacher = transformers.BertConfig()
    student = transformers.BertConfig(num_hidden_layers=6)
    total = encoder_flops(teacher, 512) + encoder_flops(student, 512, backward=True)
    total += 0.15 * (mlm_head_flops(teacher) + mlm_head_flops(student, backward=True))
    assert round(total / 1e6) == 501


def test_unknown_family_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'deberta-v2'.*bert, distilbert"):
        encoder_flops(transformers.DebertaV2Config(), 128)
