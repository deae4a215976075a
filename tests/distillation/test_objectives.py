"""Each objective against plain torch on plain tensors: loss and gradients."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spacy_distil.distillation.batches import Batch
from spacy_distil.distillation.heads import MaskedLMHead
from spacy_distil.distillation.objectives import (
    Cosine,
    Encoded,
    MaskedLM,
    Objective,
    Outputs,
    SoftTargets,
)
from spacy_distil.distillation.objectives import base as objectives_base
from spacy_distil.errors import ConfigError

BLOCKS, LENGTH, WIDTH, VOCABULARY = 3, 7, 5, 11


class Toy:
    """Random hidden states and heads of both models, and a batch with padding."""

    def __init__(self, *, n_masked: int = 6) -> None:
        torch.manual_seed(0)
        self.hidden = [torch.randn(BLOCKS, LENGTH, WIDTH, requires_grad=True) for _ in range(2)]
        self.transforms = [nn.Linear(WIDTH, WIDTH) for _ in range(2)]
        self.decoders = [nn.Linear(WIDTH, VOCABULARY) for _ in range(2)]
        self.pieces = torch.randint(VOCABULARY, (BLOCKS, LENGTH))
        attention = torch.ones(BLOCKS, LENGTH, dtype=torch.int64)
        attention[-1, 4:] = 0
        self.real = attention.bool()
        rows = attention.flatten().nonzero().squeeze(1)
        masked = rows[torch.randperm(len(rows))[:n_masked]].sort().values
        self.is_masked = torch.zeros(BLOCKS * LENGTH, dtype=torch.bool)
        self.is_masked[masked] = True
        self.batch = Batch(self.pieces, attention, rows, masked, self.pieces.flatten()[masked])

    def outputs(self) -> Outputs:
        encoded = [
            Encoded(hidden, None, MaskedLMHead(transform, decoder.weight, decoder.bias))
            for hidden, transform, decoder in zip(
                self.hidden, self.transforms, self.decoders, strict=True
            )
        ]
        return Outputs(*encoded, self.batch)

    def logits(self) -> list[Tensor]:
        """Of teacher and student, at every position, all at once."""
        return [
            decoder(transform(hidden)).flatten(0, 1)
            for hidden, transform, decoder in zip(
                self.hidden, self.transforms, self.decoders, strict=True
            )
        ]

    def gradients(self, loss: Tensor) -> list[Tensor | None]:
        """Of a loss, by everything in the student."""
        parameters = [self.hidden[1], *self.transforms[1].parameters()]
        parameters += self.decoders[1].parameters()
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))


def assert_same(toy: Toy, objective: Objective, reference: Tensor, positions: int) -> None:
    loss = objective(toy.outputs())
    assert loss.positions == positions
    torch.testing.assert_close(loss.mean, reference, rtol=1e-5, atol=1e-6)
    # The factor shows that the incoming gradient is used, not assumed to be 1.
    found, expected = toy.gradients(3 * loss.mean), toy.gradients(3 * reference)
    for gradient, wanted in zip(found, expected, strict=True):
        if wanted is None:
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_rows", [1, 4, 6, 1000])
@pytest.mark.parametrize("positions", ["masked", "all"])
def test_soft_targets_equal_kl_of_softened_distributions(positions: str, chunk_rows: int) -> None:
    toy = Toy()
    rows = toy.is_masked if positions == "masked" else toy.real.flatten()
    teacher, student = ((logits[rows] / 3.0).softmax(-1) for logits in toy.logits())
    divergence = (teacher * (teacher.log() - student.log())).sum(-1).mean()
    objective = SoftTargets(temperature=3.0, positions=positions, chunk_rows=chunk_rows)
    assert_same(toy, objective, divergence * 9, int(rows.sum()))


@pytest.mark.parametrize("chunk_rows", [1, 4, 6, 1000])
def test_masked_lm_equals_cross_entropy_at_masked_positions(chunk_rows: int) -> None:
    toy = Toy()
    labels = toy.pieces.flatten().masked_fill(~toy.is_masked, -100)
    reference = F.cross_entropy(toy.logits()[1], labels, ignore_index=-100)
    assert_same(toy, MaskedLM(chunk_rows=chunk_rows), reference, 6)


def test_cosine_equals_cosine_embedding_loss_without_padding() -> None:
    toy = Toy()
    teacher, student = (hidden[toy.real] for hidden in toy.hidden)
    reference = F.cosine_embedding_loss(student, teacher, torch.ones(len(student)))
    assert_same(toy, Cosine(), reference, int(toy.real.sum()))


def test_padding_changes_nothing() -> None:
    toy = Toy()
    every: list[Objective] = [SoftTargets(positions="all"), MaskedLM(), Cosine()]
    before = [objective(toy.outputs()).mean.item() for objective in every]
    with torch.no_grad():
        for hidden in toy.hidden:
            hidden[~toy.real] = 1e6
    assert [objective(toy.outputs()).mean.item() for objective in every] == before


@pytest.mark.parametrize("objective", [SoftTargets(), MaskedLM()])
def test_batch_with_nothing_masked_counts_for_nothing(objective: Objective) -> None:
    toy = Toy(n_masked=0)
    loss = objective(toy.outputs())
    assert (loss.mean.item(), loss.positions) == (0.0, 0)
    loss.mean.backward()  # must have a graph: nothing else may be in the sum
    assert not toy.hidden[1].grad.any()


def test_objectives_send_no_gradient_to_the_teacher() -> None:
    toy = Toy()
    teacher = [toy.hidden[0], *toy.transforms[0].parameters(), *toy.decoders[0].parameters()]
    loss = SoftTargets()(toy.outputs()).mean
    assert torch.autograd.grad(loss, teacher, allow_unused=True) == (None,) * len(teacher)


def test_logits_never_exist_for_more_than_a_chunk() -> None:
    """No tensor with a row of vocabulary size per position, in forward or backward."""
    toy = Toy(n_masked=18)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, Tensor) and tensor.shape[-1:] == (VOCABULARY,):
                    rows = math.prod(tensor.shape[:-1])
                    # (vocabulary, width) of the decoder is no logits, nor is (width, vocabulary)
                    largest = max(largest, rows if rows != WIDTH else 0)
            return result

    with Watch():
        for objective in (SoftTargets(chunk_rows=4), MaskedLM(chunk_rows=4)):
            objective(toy.outputs()).mean.backward()
    assert largest == 4


def test_cosine_refuses_unequal_widths() -> None:
    teacher, student = SimpleNamespace(hidden_size=768), SimpleNamespace(hidden_size=384)
    with pytest.raises(ConfigError, match=r"768 and the student's 384"):
        Cosine().check(teacher, student)


def test_soft_targets_refuse_unequal_vocabularies() -> None:
    teacher, student = SimpleNamespace(vocab_size=30522), SimpleNamespace(vocab_size=28996)
    with pytest.raises(ConfigError, match=r"30522 pieces and the student's 28996"):
        SoftTargets().check(teacher, student)


def test_missing_head_is_named() -> None:
    toy = Toy()
    bare = Encoded(toy.hidden[1], None, None)
    with pytest.raises(RuntimeError, match="mlm_head=True"):
        MaskedLM()(Outputs(bare, bare, toy.batch))


def test_chunks_work_under_autocast() -> None:
    """bf16 logits, float32 gradients of float32 weights, close to those of float32."""
    toy = Toy()
    exact = toy.gradients(SoftTargets()(toy.outputs()).mean)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = SoftTargets(chunk_rows=4)(toy.outputs()).mean
    assert loss.dtype == torch.float32
    for gradient, wanted in zip(toy.gradients(loss), exact, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, wanted, rtol=0.1, atol=0.02)


def test_no_gradient_is_computed_in_evaluation() -> None:
    toy = Toy()
    with torch.no_grad():
        loss = objectives_base.vocabulary_loss(
            lambda logits: logits.float().sum(),
            toy.hidden[1].flatten(0, 1),
            toy.outputs().student.mlm_head,
            chunk_rows=2,
        )
    assert not loss.mean.requires_grad
