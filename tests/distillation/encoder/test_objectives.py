"""Each objective against plain loops over plain tensors, in float64: loss and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spacy_distil.distillation.encoder.objectives import (
    Attention,
    Cosine,
    Encoded,
    HiddenStates,
    MaskedLM,
    Needs,
    Objective,
    Outputs,
    Relations,
    SoftTargets,
    VocabularyObjective,
    make_objective,
    prepare_objectives,
    vocabulary_losses,
)
from spacy_distil.distillation.encoder.objectives.chunked import chunk_size, chunked_sum
from spacy_distil.distillation.encoder.objectives.kl_divergence import kl_divergence
from spacy_distil.errors import ConfigError
from spacy_distil.students.masked_lm_heads import MaskedLMHead
from spacy_distil.students.masking import MaskedBatch

BLOCKS, LENGTH, VOCABULARY = 3, 7, 11
N_PADDING = 3  # at the end of the last block


class ToyModel:
    """Random tensors that stand for the outputs of a model."""

    def __init__(self, *, layers: int, heads: int, width: int) -> None:
        self.config: Any = SimpleNamespace(
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_size=width,
            vocab_size=VOCABULARY,
        )
        self.hidden = [torch.randn(BLOCKS, LENGTH, width) for _ in range(layers + 1)]
        self.attention = {
            layer: Attention(*(torch.randn(BLOCKS, LENGTH, width) for _ in range(3)))
            for layer in range(1, layers + 1)
        }
        self.transform = nn.Linear(width, width)
        self.decoder = nn.Linear(width, VOCABULARY)
        for tensor in self.tensors():
            tensor.requires_grad_()

    def tensors(self) -> list[Tensor]:
        """All that a batch is made into, or with."""
        attention = [tensor for layer in self.attention.values() for tensor in layer]
        weights = [*self.transform.parameters(), *self.decoder.parameters()]
        return [*self.hidden, *attention, *weights]

    def encoded(self, blocks: slice = slice(None)) -> Encoded:
        return Encoded(
            self.hidden[-1][blocks],
            {layer: hidden[blocks] for layer, hidden in enumerate(self.hidden)},
            {n: Attention(*(t[blocks] for t in a)) for n, a in self.attention.items()},
            MaskedLMHead(self.transform, self.decoder.weight, self.decoder.bias),
        )

    def logits(self, row: int) -> Tensor:
        """row: in the flattened batch."""
        return self.decoder(self.transform(self.hidden[-1].flatten(0, 1)[row]))


class Toy:
    """Outputs of two models for a batch, whose last block may be padded."""

    def __init__(
        self,
        *,
        student: tuple[int, int, int] = (2, 2, 12),
        padded: bool = True,
        n_masked: int = 6,
    ) -> None:
        """student: layers, heads, width; the teacher's are 3, 4, 12."""
        torch.manual_seed(0)
        self.teacher = ToyModel(layers=3, heads=4, width=12)
        layers, heads, width = student
        self.student = ToyModel(layers=layers, heads=heads, width=width)
        self.pieces = torch.randint(VOCABULARY, (BLOCKS, LENGTH))
        self.real = torch.ones(BLOCKS, LENGTH, dtype=torch.bool)
        if padded:
            self.real[-1, -N_PADDING:] = False
        rows = self.real.flatten().nonzero().squeeze(1)
        chosen = rows[torch.randperm(len(rows))[:n_masked]]
        self.is_masked = torch.zeros_like(self.real).flatten().index_fill(0, chosen, True)
        self.is_masked = self.is_masked.view_as(self.real)

    def batch(self, blocks: slice = slice(None)) -> MaskedBatch:
        real, is_masked = self.real[blocks], self.is_masked[blocks]
        full = bool(real.all())
        return MaskedBatch(
            inputs=self.pieces[blocks],
            attention=None if full else real.long(),
            real=None if full else real.flatten().nonzero().squeeze(1),
            masked=is_masked.flatten().nonzero().squeeze(1),
            labels=self.pieces[blocks][is_masked],
        )

    def outputs(self, blocks: slice = slice(None), step: int = 0) -> Outputs:
        teacher, student = self.teacher.encoded(blocks), self.student.encoded(blocks)
        return Outputs(teacher, student, self.batch(blocks), step)

    def prepared(self, objective: Objective) -> Objective:
        objective.prepare(self.teacher.config, self.student.config)
        return objective

    def positions(self) -> list[tuple[int, int]]:
        """Block and place of all that is no padding."""
        return [(int(b), int(i)) for b, i in self.real.nonzero()]

    def masked_rows(self) -> list[int]:
        return self.is_masked.flatten().nonzero().squeeze(1).tolist()


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_same(toy: Toy, objective: Objective, reference: Tensor, positions: int) -> None:
    """The loss and its gradients with respect to the student's tensors and the parameters."""
    loss = objective(toy.outputs())
    assert loss.positions == positions
    torch.testing.assert_close(loss.sum, reference)
    tensors = [*toy.student.tensors(), *objective.parameters()]
    # The factor shows that the incoming gradient is used, not assumed to be 1.
    found = torch.autograd.grad(3 * loss.sum, tensors, allow_unused=True)
    expected = torch.autograd.grad(3 * reference, tensors, allow_unused=True)
    assert any(gradient is not None for gradient in expected)
    for gradient, wanted in zip(found, expected, strict=True):
        assert (gradient is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(gradient, wanted)


def total(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).sum()


SMALLER = (2, 2, 8)  # layers, heads and width all differ from the teacher's
CHUNKS = (1, 2, 4, 6, 1000)


# The losses


@pytest.mark.parametrize("chunk_rows", CHUNKS)
@pytest.mark.parametrize("positions", ["masked", "all"])
@pytest.mark.parametrize("student", [(2, 2, 12), SMALLER])
def test_soft_targets(positions: Any, chunk_rows: int, student: tuple[int, int, int]) -> None:
    toy = Toy(student=student)
    rows = (
        toy.masked_rows() if positions == "masked" else [b * LENGTH + i for b, i in toy.positions()]
    )
    losses = []
    for row in rows:
        p, q = ((model.logits(row) / 3).exp() for model in (toy.teacher, toy.student))
        p, q = p / p.sum(), q / q.sum()
        losses.append(9 * (p.detach() * (p.detach() / q).log()).sum())
    objective = SoftTargets(temperature=3.0, positions=positions, chunk_rows=chunk_rows)
    assert_same(toy, toy.prepared(objective), total(losses), len(rows))


@pytest.mark.parametrize("chunk_rows", CHUNKS)
def test_masked_lm(chunk_rows: int) -> None:
    toy = Toy(student=SMALLER)
    losses = []
    for row in toy.masked_rows():
        q = toy.student.logits(row).exp()
        losses.append(-(q / q.sum())[toy.pieces.flatten()[row]].log())
    assert_same(toy, toy.prepared(MaskedLM(chunk_rows=chunk_rows)), total(losses), 6)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("student", [(2, 2, 12), SMALLER])
def test_cosine(student: tuple[int, int, int], padded: bool) -> None:
    toy = Toy(student=student, padded=padded)
    objective = Cosine()
    toy.prepared(objective)
    losses = []
    for b, i in toy.positions():
        target, prediction = toy.teacher.hidden[-1][b, i].detach(), toy.student.hidden[-1][b, i]
        if student == SMALLER:
            projection = objective.projection
            assert isinstance(projection, nn.Linear)
            prediction = projection.weight @ prediction + projection.bias
        losses.append(1 - target @ prediction / target.norm() / prediction.norm())
    assert len([*objective.parameters()]) == (2 if student == SMALLER else 0)
    assert_same(toy, objective, total(losses), len(losses))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(
    ("layers", "pairs"),
    [("last", [(2, 3)]), ("even", [(1, 2), (2, 3)]), ([[0, 0], [2, 1], [2, 3]],) * 2],
)
@pytest.mark.parametrize("student", [(2, 2, 12), SMALLER])
def test_hidden_states(
    student: tuple[int, int, int], layers: Any, pairs: Any, padded: bool, normalize: bool
) -> None:
    toy = Toy(student=student, padded=padded)
    objective = HiddenStates(layers=layers, normalize=normalize)
    toy.prepared(objective)
    losses = []
    for place, (own, other) in enumerate(pairs):
        for b, i in toy.positions():
            target, prediction = (
                toy.teacher.hidden[other][b, i].detach(),
                toy.student.hidden[own][b, i],
            )
            if student == SMALLER:
                projection = objective.projections[place]
                assert isinstance(projection, nn.Linear)
                prediction = projection.weight @ prediction + projection.bias
            if normalize:
                target, prediction = (
                    (t - t.mean()) / (t.var(correction=0) + 1e-5).sqrt()
                    for t in (target, prediction)
                )
            losses.append(sum((a - c) ** 2 for a, c in zip(target, prediction, strict=True)) / 12)
    n_parameters = 2 * len(pairs) if student == SMALLER else 0
    assert len([*objective.parameters()]) == n_parameters
    assert_same(toy, objective, total(losses) / len(pairs), len(toy.positions()))


@dataclass
class Case:
    """A setting of the relations."""

    student: tuple[int, int, int] = SMALLER
    padded: bool = True
    layers: Any = "last"
    pairs: tuple[tuple[int, int], ...] = ((2, 3),)
    heads: int | None = None
    kinds: tuple[str, ...] = ("queries", "keys", "values")
    chunk_blocks: int = 2


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(padded=False),
        Case(chunk_blocks=1),
        Case(chunk_blocks=3),
        Case(chunk_blocks=50),
        Case(heads=1),
        Case(heads=2, padded=False),
        Case(student=(2, 2, 12), heads=6),
        Case(student=(3, 4, 12), pairs=((3, 3),)),
        Case(kinds=("values",)),
        Case(kinds=("keys", "queries")),
        Case(layers=[[1, 3], [1, 1]], pairs=((1, 3), (1, 1))),
        Case(layers="even", pairs=((1, 2), (2, 3))),
    ],
)
def test_relations(case: Case) -> None:
    toy = Toy(student=case.student, padded=case.padded)
    heads = case.heads or 4
    losses = []
    for own, other in case.pairs:
        for kind in case.kinds:
            target = getattr(toy.teacher.attention[other], kind).detach()
            prediction = getattr(toy.student.attention[own], kind)
            for head in range(heads):
                for b, i in toy.positions():
                    distributions = []
                    for vectors in (target, prediction):
                        size = vectors.shape[-1] // heads
                        part = vectors[b, :, head * size : (head + 1) * size]
                        alike = [part[i] @ part[j] for c, j in toy.positions() if c == b]
                        scores = (torch.stack(alike) / math.sqrt(size)).exp()
                        distributions.append(scores / scores.sum())
                    p, q = distributions
                    losses.append((p * (p / q).log()).sum())
    objective = Relations(
        layers=case.layers,
        heads=case.heads,
        relations=case.kinds,
        chunk_blocks=case.chunk_blocks,
    )
    reference = total(losses) / heads / len(case.kinds) / len(case.pairs)
    assert_same(toy, toy.prepared(objective), reference, len(toy.positions()))


# All objectives

EVERY: list[Callable[[], Objective]] = [
    lambda: SoftTargets(chunk_rows=4),
    lambda: SoftTargets(positions="all", chunk_rows=4),
    lambda: MaskedLM(chunk_rows=4),
    Cosine,
    HiddenStates,
    lambda: HiddenStates(normalize=True),
    lambda: Relations(chunk_blocks=2),
]


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("parts", [(1, 2), (2, 1), (1, 1, 1)])
def test_parts_of_a_batch_add_up(make: Callable[[], Objective], parts: tuple[int, ...]) -> None:
    toy = Toy(student=SMALLER)
    objective = toy.prepared(make())
    whole = objective(toy.outputs())
    ends = [sum(parts[: i + 1]) for i in range(len(parts))]
    losses = [
        objective(toy.outputs(slice(end - size, end)))
        for size, end in zip(parts, ends, strict=True)
    ]
    torch.testing.assert_close(total([loss.sum for loss in losses]), whole.sum)
    assert sum(loss.positions for loss in losses) == whole.positions > 0


@pytest.mark.parametrize("make", EVERY)
def test_padding_changes_nothing(make: Callable[[], Objective]) -> None:
    toy = Toy(student=SMALLER)
    objective = toy.prepared(make())
    before = objective(toy.outputs()).sum.item()
    models = (toy.teacher, toy.student)
    padded = [t for m in models for t in (*m.hidden, *(x for a in m.attention.values() for x in a))]
    with torch.no_grad():
        for tensor in padded:
            tensor[~toy.real] = 1e6
    loss = objective(toy.outputs()).sum
    assert loss.item() == pytest.approx(before, rel=1e-12)
    for gradient in torch.autograd.grad(loss, padded, allow_unused=True):
        assert gradient is None or not gradient[~toy.real].any()


@pytest.mark.parametrize("make", EVERY)
def test_a_student_that_equals_its_teacher_has_no_loss(make: Callable[[], Objective]) -> None:
    toy = Toy()
    toy.student = toy.teacher
    objective = toy.prepared(make())
    loss = objective(toy.outputs()).sum
    if isinstance(objective, MaskedLM):  # it learns from the text
        assert loss > 1
        return
    assert loss.item() == pytest.approx(0, abs=1e-12)
    toy.teacher = Toy().teacher  # equal, but separate tensors
    tensors = toy.student.tensors()
    for gradient in torch.autograd.grad(objective(toy.outputs()).sum, tensors, allow_unused=True):
        assert gradient is None or gradient.abs().max() < 1e-12


@pytest.mark.parametrize("make", EVERY)
def test_teacher_gets_no_gradient(make: Callable[[], Objective]) -> None:
    toy = Toy(student=SMALLER)
    toy.teacher.hidden = [hidden.detach() for hidden in toy.teacher.hidden]
    toy.teacher.attention = {
        n: Attention(*(t.detach() for t in a)) for n, a in toy.teacher.attention.items()
    }
    loss = toy.prepared(make())(toy.outputs()).sum
    tensors = [*toy.teacher.transform.parameters(), *toy.teacher.decoder.parameters()]
    assert set(torch.autograd.grad(loss, tensors, allow_unused=True)) == {None}


@pytest.mark.parametrize("make", EVERY)
def test_outputs_from_inference_mode_can_be_targets(make: Callable[[], Objective]) -> None:
    toy = Toy(student=SMALLER)
    objective = toy.prepared(make())
    expected = objective(toy.outputs()).sum
    with torch.inference_mode():
        toy.teacher.hidden = [hidden.clone() for hidden in toy.teacher.hidden]
        toy.teacher.attention = {
            n: Attention(*(t.clone() for t in a)) for n, a in toy.teacher.attention.items()
        }
    assert toy.teacher.hidden[0].is_inference()
    assert_same(toy, objective, expected, objective(toy.outputs()).positions)


@pytest.mark.parametrize("make", EVERY)
def test_no_graph_is_made_in_evaluation(make: Callable[[], Objective]) -> None:
    toy = Toy(student=SMALLER)
    objective = toy.prepared(make())
    expected = objective(toy.outputs()).sum
    with torch.no_grad():
        loss = objective(toy.outputs()).sum
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach())


@pytest.mark.parametrize("make", EVERY)
def test_bf16(make: Callable[[], Objective]) -> None:
    """The student's products in bf16, all of the teacher's in it: float32 losses, and gradients
    close to the results in float32."""
    torch.set_default_dtype(torch.float32)
    toy = Toy(student=SMALLER)
    objective = toy.prepared(make())
    tensors = [*toy.student.tensors(), *objective.parameters()]
    exact = objective(toy.outputs()).sum
    expected = torch.autograd.grad(exact, tensors, allow_unused=True)
    for tensor in toy.teacher.tensors():
        tensor.data = tensor.data.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(toy.outputs()).sum
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)
    for gradient, wanted in zip(
        torch.autograd.grad(loss, tensors, allow_unused=True), expected, strict=True
    ):
        if wanted is not None:
            assert gradient.dtype == torch.float32
            assert (gradient - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("make", [SoftTargets, MaskedLM])
def test_a_batch_without_masked_pieces_counts_0(make: Callable[[], Objective]) -> None:
    toy = Toy(n_masked=0)
    loss = make()(toy.outputs())
    assert (loss.sum.item(), loss.positions) == (0.0, 0)
    loss.sum.backward()  # needs a graph of all parameters, since processes wait for each gradient
    for tensor in [toy.student.hidden[-1], *toy.student.decoder.parameters()]:
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_a_head_that_is_not_trained_gets_no_gradient() -> None:
    toy = Toy()
    wanted = torch.autograd.grad(SoftTargets()(toy.outputs()).sum, toy.student.hidden[-1])
    toy.student.decoder.requires_grad_(False)
    SoftTargets(chunk_rows=4)(toy.outputs()).sum.backward()
    assert toy.student.decoder.weight.grad is None
    torch.testing.assert_close((toy.student.hidden[-1].grad,), wanted)


# Memory


class Largest(TorchDispatchMode):
    """Watches how many rows the tensors have whose last dimensions are of some size.

    shape: the last dimensions.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape, self.rows = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor) and tensor.shape[-len(self.shape) :] == self.shape:
                self.rows = max(self.rows, math.prod(tensor.shape[: -len(self.shape)]))
        return result


@pytest.mark.parametrize("make", [SoftTargets, MaskedLM])
def test_logits_never_exist_for_more_than_a_chunk(make: Any) -> None:
    toy = Toy(n_masked=18, student=(1, 1, 2))  # too narrow for a weight with more than 4 rows
    toy.teacher = ToyModel(layers=1, heads=1, width=2)
    with Largest(VOCABULARY) as seen:
        make(chunk_rows=4)(toy.outputs()).sum.backward()
    assert seen.rows == 4


@pytest.mark.parametrize("padded", [True, False])
def test_relations_never_exist_for_more_than_a_chunk(padded: bool) -> None:
    toy = Toy(student=(2, 4, 12), padded=padded)
    objective = toy.prepared(Relations(chunk_blocks=2))
    with Largest(LENGTH, LENGTH) as seen:
        objective(toy.outputs()).sum.backward()
    assert seen.rows == 2 * 4


# The parts


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_chunked_sum(size: int) -> None:
    """Gradients flow into `sliced` and `whole`, and into nothing else."""
    torch.manual_seed(0)
    first, second = (torch.randn(5, 3, requires_grad=True) for _ in range(2))
    weight, fixed = torch.randn(3, requires_grad=True), torch.randn(3)
    factor = torch.randn(5)

    def loss(a: Tensor, b: Tensor, weight: Tensor, fixed: Tensor, factor: Tensor) -> Tensor:
        return (((a * b) @ weight + a @ fixed).tanh() * factor).sum()

    def chunked(*tensors: Tensor) -> Tensor:
        first, second, weight = tensors
        return chunked_sum(
            loss, [first, second], whole=[weight, fixed], constant=[factor], size=size
        )

    assert torch.autograd.gradcheck(chunked, (first, second, weight))
    expected = loss(first, second, weight, fixed, factor)
    torch.testing.assert_close(chunked(first, second, weight), expected)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5)])
@pytest.mark.parametrize("ignoring", [False, True])
def test_kl_divergence(shape: tuple[int, ...], ignoring: bool) -> None:
    torch.manual_seed(0)
    target, prediction = torch.randn(shape), torch.randn(shape, requires_grad=True)
    ignored = torch.rand(shape[-1]) < 0.4 if ignoring else None
    assert torch.autograd.gradcheck(lambda t: kl_divergence(target, t, ignored), (prediction,))
    kept = slice(None) if ignored is None else ~ignored
    expected = F.kl_div(
        prediction[..., kept].log_softmax(-1),
        target[..., kept].log_softmax(-1),
        log_target=True,
        reduction="sum",
    )
    torch.testing.assert_close(kl_divergence(target, prediction, ignored), expected)


def test_a_row_of_ignored_entries_counts_0() -> None:
    target, prediction = torch.randn(3, 5), torch.randn(3, 5, requires_grad=True)
    ignored = torch.tensor([[False], [True], [False]])
    loss = kl_divergence(target, prediction, ignored)
    torch.testing.assert_close(loss, kl_divergence(target[::2], prediction[::2]))
    loss.backward()
    assert prediction.grad is not None
    assert not prediction.grad[1].any()


def test_kl_divergence_of_certain_predictions() -> None:
    """Logits so far apart that probabilities vanish."""
    target = torch.tensor([[1e4, 0.0, -1e4]])
    prediction = torch.tensor([[0.0, 1e4, -1e4]], requires_grad=True)
    loss = kl_divergence(target, prediction)
    assert loss.item() == pytest.approx(1e4)
    loss.backward()
    torch.testing.assert_close(prediction.grad, torch.tensor([[-1.0, 1.0, 0.0]]))


SHARING: list[VocabularyObjective] = [SoftTargets(temperature=3.0), MaskedLM()]


class Products(TorchDispatchMode):
    """Counts matrix products that make logits, by the number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.addmm, torch.ops.aten.mm) and (
            result.shape[-1] == VOCABULARY
        ):
            self.rows.append(len(result))
        return result


def test_objectives_at_the_same_positions_share_logits() -> None:
    """The weighted sum has the gradient of separate losses, with 2 products in place of 3."""
    toy = Toy(student=(2, 2, 12))
    factors = [0.7, 3.0]
    separate = [objective(toy.outputs()).sum for objective in SHARING]
    reference = torch.stack([f * loss for f, loss in zip(factors, separate, strict=True)]).sum()
    expected = torch.autograd.grad(3 * reference, toy.student.tensors(), allow_unused=True)
    with Products() as products:
        joint, sums = vocabulary_losses(SHARING, toy.outputs(), factors)
    assert products.rows == [6, 6]  # student and teacher
    torch.testing.assert_close(joint, reference)
    torch.testing.assert_close(sums, [loss.detach() for loss in separate])
    found = torch.autograd.grad(3 * joint, toy.student.tensors(), allow_unused=True)
    for gradient, wanted in zip(found, expected, strict=True):
        assert (gradient is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(gradient, wanted)


def test_the_smallest_chunk_rows_counts() -> None:
    toy, objectives = Toy(), [SoftTargets(chunk_rows=5), MaskedLM(chunk_rows=2)]
    with Products() as products:
        vocabulary_losses(objectives, toy.outputs(), [1.0, 1.0])
    assert products.rows == [2] * 6


def test_chunks_are_larger_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor of a chunk takes a 64th of a GPU's memory, or a row if that is more."""
    bert = 4 * 30522  # bytes of a row of logits
    assert chunk_size(torch.device("cpu"), bytes_per_row=bert, on_cpu=1024) == 1024
    properties = SimpleNamespace(total_memory=16 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    gpu = torch.device("cuda", 0)
    assert chunk_size(gpu, bytes_per_row=bert, on_cpu=1024) == 2198
    assert chunk_size(gpu, bytes_per_row=2**40, on_cpu=1024) == 1


# Settings


def test_temperature_follows_its_schedule() -> None:
    toy = Toy()
    scheduled = SoftTargets(temperature=iter([4.0, 2.0]))
    for step, temperature in ((1, 2.0), (0, 4.0), (7, 2.0)):
        constant = SoftTargets(temperature=temperature)
        expected = constant(toy.outputs()).sum
        torch.testing.assert_close(scheduled(toy.outputs(step=step)).sum, expected)


@pytest.mark.parametrize(
    ("weight", "active"),
    [(0, False), (0.0, False), (0.5, True), (iter([0.0]), False), (iter([0.0, 1.0]), True)],
)
def test_an_objective_with_weight_0_is_not_active(weight: Any, active: bool) -> None:
    assert Cosine(weight).is_active == active


def test_needs() -> None:
    assert MaskedLM().needs == Needs(teacher=False, student_head=True, masking=True)
    toy = Toy()
    MaskedLM()(Outputs(None, toy.student.encoded(), toy.batch()))  # it needs no teacher
    assert SoftTargets().needs == Needs(teacher_head=True, student_head=True, masking=True)
    assert SoftTargets(positions="all").needs == Needs(teacher_head=True, student_head=True)
    for objective in (Cosine(), HiddenStates(), Relations()):
        assert objective.needs == Needs()


def test_errors_name_missing_outputs() -> None:
    toy = Toy()
    bare = Encoded(toy.student.hidden[-1], {}, {}, None)
    with pytest.raises(RuntimeError, match="masked-LM head"):
        MaskedLM()(Outputs(None, bare, toy.batch()))
    with pytest.raises(RuntimeError, match="teacher=True"):
        Cosine()(Outputs(None, bare, toy.batch()))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"weight": "x"}, r"^objectives\.mine\.weight = 'x': must be a number, or a block with @s"),
        ({"weight": [1.0]}, r"^objectives\.mine\.weight = \[1\.0\]: must be a number"),
        ({"weight": -1}, r"^objectives\.mine\.weight = -1: must be at least 0"),
        ({"wight": 1}, r"^objectives\.mine\.wight = 1: no such setting\. Settings of it: weight"),
        ({"temperature": 0}, r"^objectives\.mine\.temperature = 0: must be above 0"),
        ({"positions": "some"}, r"mine\.positions = 'some': must be 'masked' or 'all'"),
        ({"chunk_rows": 0}, r"^objectives\.mine\.chunk_rows = 0: must be at least 1"),
        ({"chunk_rows": 2.5}, r"^objectives\.mine\.chunk_rows = 2\.5: must be an integer"),
        ({"weight": {"@schedules": "none.v1"}}, r"^\[objectives\.mine\]: .*'none\.v1'"),
        (
            {"weight": {"@schedules": "constant.v1"}},
            r"^objectives\.mine\.weight\.rate: missing required argument",
        ),
        (
            {"temperature": {"@schedules": "decaying.v1", "base_rate": -1.0, "decay": 1.0}},
            r"^objectives\.mine\.temperature = -1: must be above 0",
        ),
    ],
)
def test_wrong_settings_of_soft_targets_are_named(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_objective("mine", {"@distil_objectives": "spacy-distil.SoftTargets.v1", **block})


@pytest.mark.parametrize(
    ("name", "block", "message"),
    [
        ("HiddenStates", {"layers": "first"}, r"layers = 'first': must be 'last' or 'even', or \["),
        ("HiddenStates", {"layers": [1, 2]}, r"layers = \[1, 2\]: must be 'last'"),
        ("HiddenStates", {"normalize": 1}, r"mine\.normalize = 1: must be true or false"),
        ("Relations", {"heads": 0}, r"^objectives\.mine\.heads = 0: must be at least 1"),
        ("Relations", {"heads": "all"}, r"mine\.heads = 'all': must be an integer, or null"),
        ("Relations", {"relations": ["key"]}, r"= \['key'\]: must be \['queries' or 'keys' or"),
        ("Relations", {"relations": []}, r"^objectives\.mine\.relations = \[\]: must name one or"),
        ("Relations", {"relations": ["keys", "keys"]}, r"each once"),
        ("Relations", {"chunk_blocks": 0}, r"chunk_blocks = 0: must be at least 1"),
    ],
)
def test_wrong_settings_of_other_objectives_are_named(name: str, block: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_objective("mine", {"@distil_objectives": f"spacy-distil.{name}.v1", **block})


def test_settings_reach_the_objective() -> None:
    def make(name: str, **block: Any) -> Any:
        return make_objective("mine", {"@distil_objectives": f"spacy-distil.{name}.v1", **block})

    schedule = {"@schedules": "compounding.v1", "start": 1.0, "stop": 9.0, "compound": 2.0}
    soft = make("SoftTargets", weight=schedule, temperature=3, positions="all", chunk_rows=7)
    assert [soft.weight.at(step) for step in range(5)] == [1.0, 2.0, 4.0, 8.0, 9.0]
    assert (soft.temperature.at(0), soft.positions, soft.chunk_rows) == (3.0, "all", 7)
    assert make("MaskedLM", weight=1, chunk_rows=8).chunk_rows == 8
    hidden = make("HiddenStates", weight=2, layers=[[1, 2]], normalize=True)
    assert (hidden.weight.at(0), hidden.layers, hidden.normalize) == (2.0, [[1, 2]], True)
    relations = make("Relations", layers="even", heads=6, relations=["keys"], chunk_blocks=3)
    assert (relations.layers, relations.heads, relations.chunk_blocks) == ("even", 6, 3)
    assert relations.relations == ["keys"]
    assert make("Relations").relations == ["queries", "keys", "values"]


def test_a_schedule_that_goes_wrong_later_is_named_in_full() -> None:
    weight = {"@schedules": "warmup_linear.v1", "initial_rate": 1.0, "warmup_steps": 2}
    weight |= {"total_steps": -1}  # not a valid argument
    temperature = {"@schedules": "warmup_linear.v1", "initial_rate": 1.0, "warmup_steps": 0}
    temperature |= {"total_steps": 2}  # falls to 0
    block = {"weight": weight, "temperature": temperature}
    made: Any = make_objective(
        "mine", {"@distil_objectives": "spacy-distil.SoftTargets.v1", **block}
    )
    with pytest.raises(ConfigError, match=r"^objectives\.mine\.temperature = 0 at step 3: must be"):
        made.temperature.at(2)


# Two models that do not fit each other


def config(**changes: int) -> Any:
    shape = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12}
    return SimpleNamespace(**{**shape, "vocab_size": 30522, **changes})


@pytest.mark.parametrize(
    ("objective", "student", "message"),
    [
        (
            SoftTargets(),
            config(vocab_size=28996),
            r"^objectives\.mine\.weight = 5: must be 0 .*teacher's has 30522 .*student's 28996",
        ),
        (
            HiddenStates(layers=[[7, 1]]),
            config(),
            r"^objectives\.mine\.layers = \[\[7, 1\]\]: the student has no layer 7",
        ),
        (
            Relations(layers=[[0, 1]]),
            config(),
            r"^objectives\.mine\.layers = \[\[0, 1\]\]: the student has no layer 0",
        ),
        (
            Relations(heads=12),
            config(hidden_size=256, num_attention_heads=8),
            r"^objectives\.mine\.heads = 12: must divide the widths of both models, 384 of the "
            r"teacher and 256 of the student\. These do: 1, 2, 4, 8, 16, 32, 64, 128$",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(
    objective: Objective, student: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare_objectives({"mine": objective}, config(), student)


def test_models_that_fit() -> None:
    every = {f"{number}": make() for number, make in enumerate(EVERY)}
    prepare_objectives(every, config(), config(num_hidden_layers=3))
    hidden, relations = every["4"], every["6"]
    assert hidden.hidden_pairs == [(1, 2), (2, 4), (3, 6)]
    assert relations.attention_pairs == [(3, 6)]
    assert isinstance(relations, Relations)
    assert relations.heads == 12


def test_relation_heads_are_as_many_as_fit() -> None:
    relations = Relations()
    prepare_objectives({"mine": relations}, config(), config(hidden_size=256))
    assert relations.heads == 8  # 12 divides 384, but not 256
