"""Importance against finite differences of the loss, and in known cases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedModel

from spacy_distil.errors import ConfigError, CorpusError, WeightsError
from spacy_distil.students.importance import importance_batches, measure_importance
from spacy_distil.students.masking import MaskedBatch
from spacy_distil.students.teachers import Teacher
from tests.teachers import tiny_tokenizer

WIDTH, HEADS, SIZE, FFN, LAYERS = 6, 3, 2, 5, 2
# Names of linear layers that read heads or neurons, and of modules that make hidden states.
READS_HEADS = ("attention.output.dense", "attention.out_lin", "attention.attn.o")
READS_NEURONS = ("ffn.lin2", "output.dense")
MAKES_HIDDEN = ("LayerNorm", "layer_norm", "embeddings_project")


def random_teacher(family: str, *, head: bool) -> Teacher:
    """Make a teacher in float64. ELECTRA and ALBERT get narrow embeddings."""
    torch.manual_seed(5)
    tokenizer = tiny_tokenizer(family)
    names = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS}
    names |= {"hidden_dim" if family == "distilbert" else "intermediate_size": FFN}
    names |= {"embedding_size": 4} if family in ("electra", "albert") else {}
    names |= {"vocab_size": len(tokenizer), "max_position_embeddings": 40}
    config = AutoConfig.for_model(family, **names)
    model = (AutoModelForMaskedLM if head else AutoModel).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model = model.double().eval().requires_grad_(False)
    return Teacher("tiny", model, tokenizer, head, "", model.num_parameters(), len(tokenizer))


def random_blocks() -> list[np.ndarray]:
    """Draw blocks of different lengths, which need padding."""
    rng = np.random.default_rng(1)
    blocks = [rng.integers(5, 60, length).astype(np.int32) for length in (12, 20, 16, 20, 9)]
    for block in blocks:
        block[0], block[-1] = 2, 3
    return blocks


@torch.no_grad()
def naive_losses(
    teacher: Teacher, targets: list[Tensor], batches: list[MaskedBatch]
) -> list[float]:
    """Compute the loss of each block on its own, without padding.

    targets: last hidden states of the clean text, by block.
    """
    losses = []
    for batch in batches:
        length = batch.inputs.shape[1]
        for row, inputs in enumerate(batch.inputs):
            end = length if batch.attention is None else int(batch.attention[row].sum())
            places = [(int(at) % length, i) for i, at in enumerate(batch.masked)]
            places = [
                place
                for place, at in zip(places, batch.masked, strict=True)
                if int(at) // length == row
            ]
            output = teacher.model(input_ids=inputs[None, :end])
            if teacher.has_mlm_head:
                logits = output.logits[0, [place for place, _ in places]]
                labels = batch.labels[[i for _, i in places]]
                losses.append(float(F.cross_entropy(logits, labels)))
            else:
                similar = F.cosine_similarity(output[0][0], targets[len(losses)], dim=-1)
                losses.append(float((1 - similar).mean()))
    return losses


@torch.no_grad()
def clean_states(teacher: Teacher) -> list[Tensor]:
    return [
        teacher.model(input_ids=torch.from_numpy(block.astype(np.int64))[None])[0][0]
        for block in random_blocks()
    ]


def modules_of(model: PreTrainedModel, endings: tuple[str, ...]) -> list[Any]:
    return [
        module
        for name, module in model.base_model.named_modules()
        if name.endswith(endings) and (endings is READS_HEADS or not name.endswith(READS_HEADS))
    ]


def scale(model: PreTrainedModel, kind: str, layer: int, place: int, factor: float) -> None:
    """Multiply one head, neuron or dimension by changing the weights that make or read it."""
    if kind == "heads":
        weight = modules_of(model, READS_HEADS)[layer].weight
        weight[:, place * SIZE : (place + 1) * SIZE] *= factor
    elif kind == "neurons":
        modules_of(model, READS_NEURONS)[layer].weight[:, place] *= factor
    else:
        for module in modules_of(model, MAKES_HIDDEN):
            if len(module.bias) == WIDTH:  # not the bias of ELECTRA's narrower embeddings
                module.weight[place] *= factor
                module.bias[place] *= factor


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra", "mpnet"])
def test_importance_is_the_slope_of_the_loss(family: str, head: bool) -> None:
    teacher = random_teacher(family, head=head)
    batches = list(importance_batches(random_blocks(), teacher, batch_pieces=45))
    assert [len(batch.inputs) for batch in batches] == [2, 2, 1]
    assert batches[0].attention is not None
    importance = measure_importance(teacher, batches)
    assert (importance.blocks, importance.loss_kind) == (5, "masked LM" if head else "cosine")
    targets = clean_states(teacher)
    step = 1e-5
    sizes = {"heads": (LAYERS, HEADS), "neurons": (LAYERS, FFN), "dims": (1, WIDTH)}
    for kind, (layers, places) in sizes.items():
        expected = torch.zeros(layers, places, dtype=torch.float64)
        for layer in range(layers):
            for place in range(places):
                losses = []
                for factor in (1 + step, 1 - step):
                    scale(teacher.model, kind, layer, place, factor)
                    losses.append(naive_losses(teacher, targets, batches))
                    scale(teacher.model, kind, layer, place, 1 / factor)
                slopes = [abs(up - down) / (2 * step) for up, down in zip(*losses, strict=True)]
                expected[layer, place] = np.mean(slopes)
        expected /= expected.square().sum(dim=1, keepdim=True).sqrt()
        actual = getattr(importance, kind).view_as(expected)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)
        assert expected.std() > 0.05


@pytest.mark.parametrize("head", [True, False])
def test_unread_units_have_no_importance_and_copies_have_the_same(head: bool) -> None:
    teacher = random_teacher("bert", head=head)
    layer = teacher.model.base_model.encoder.layer[1]
    attention = layer.attention.self
    for part in (attention.query, attention.key, attention.value):
        part.weight[2:4] = part.weight[:2]  # head 1 as head 0
        part.bias[2:4] = part.bias[:2]
    out = layer.attention.output.dense.weight
    out[:, 2:4] = out[:, :2]
    out[:, 4:] = 0
    layer.intermediate.dense.weight[3] = layer.intermediate.dense.weight[0]
    layer.intermediate.dense.bias[3] = layer.intermediate.dense.bias[0]
    layer.output.dense.weight[:, 3] = layer.output.dense.weight[:, 0]
    layer.output.dense.weight[:, 4] = 0
    importance = measure_importance(teacher, importance_batches(random_blocks(), teacher))
    assert importance.heads[1, 2] == 0
    assert importance.neurons[1, 4] == 0
    assert importance.heads[1, 0] > 0.1
    assert importance.neurons[1, 0] > 0
    torch.testing.assert_close(importance.heads[1, 0], importance.heads[1, 1], rtol=1e-9, atol=0)
    torch.testing.assert_close(
        importance.neurons[1, 0], importance.neurons[1, 3], rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("head", [True, False])
def test_batches_do_not_matter_and_the_teacher_is_unchanged(head: bool) -> None:
    teacher = random_teacher("bert", head=head)
    before = clean_states(teacher) if not head else []
    results = [
        measure_importance(teacher, importance_batches(random_blocks(), teacher, batch_pieces=size))
        for size in (1, 100)
    ]
    for name in ("heads", "neurons", "dims"):
        one, other = (getattr(result, name) for result in results)
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        assert one.dtype == torch.float64
        assert not one.requires_grad
        torch.testing.assert_close(one.square().sum(-1), torch.ones_like(one.sum(-1)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.model.modules())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    for earlier, later in zip(before, clean_states(teacher) if not head else [], strict=True):
        assert torch.equal(earlier, later)


def test_masks_follow_the_seed() -> None:
    teacher = random_teacher("bert", head=False)
    first, same, other = (
        next(importance_batches(random_blocks(), teacher, seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.inputs, same.inputs)
    assert not torch.equal(first.inputs, other.inputs)
    assert len(first.masked) == sum(round(0.15 * (len(block) - 2)) for block in random_blocks())


def test_long_blocks_are_read_to_128_pieces() -> None:
    teacher = random_teacher("bert", head=False)
    ids = np.random.default_rng(2).integers(5, 60, (2, 200)).astype(np.uint16)
    ids[:, 0], ids[:, -1] = 2, 3
    (batch,) = importance_batches([ids[0], ids[1][:128]], teacher)
    assert batch.attention is None
    clean = batch.inputs.flatten().index_copy(0, batch.masked, batch.labels).view(2, 128).numpy()
    np.testing.assert_array_equal(clean[0], [*ids[0][:127], 3])
    np.testing.assert_array_equal(clean[1], ids[1][:128])


def test_infinite_weights_are_refused() -> None:
    teacher = random_teacher("bert", head=False)
    teacher.model.base_model.encoder.layer[1].output.dense.weight[0, 0] = torch.inf
    with pytest.raises(WeightsError, match=r"tiny: .*not finite"):
        measure_importance(teacher, importance_batches(random_blocks(), teacher))


def test_no_text_and_other_families_are_refused() -> None:
    teacher = random_teacher("bert", head=False)
    with pytest.raises(CorpusError, match="there is none"):
        measure_importance(teacher, [])
    albert = replace(teacher, model=random_teacher("albert", head=False).model)
    with pytest.raises(ConfigError, match=r"'albert'.*bert, distilbert"):
        measure_importance(albert, [])
