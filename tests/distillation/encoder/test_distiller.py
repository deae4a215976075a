"""Teacher and student on one batch: outputs, gradients, saved state and memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from spacy_distil.distillation.encoder.distiller import Distiller
from spacy_distil.distillation.encoder.objectives import (
    Attention,
    Cosine,
    Encoded,
    HiddenStates,
    MaskedLM,
    Objective,
    Outputs,
    Relations,
    SoftTargets,
    prepare_objectives,
)
from spacy_distil.students.families import FAMILIES
from spacy_distil.students.making import make_student
from spacy_distil.students.masked_lm_heads import masked_lm_head
from spacy_distil.students.masking import MaskedBatch, Masking, batch_blocks
from spacy_distil.students.teachers import Teacher, load_teacher

TeacherDir = Callable[..., Path]


def all_objectives() -> dict[str, Objective]:
    return {
        "soft": SoftTargets(5.0),
        "mlm": MaskedLM(2.0),
        "cosine": Cosine(1.0),
        "hidden": HiddenStates(1.0, layers=[[0, 0], [1, 2], [2, 4]]),
        "relations": Relations(1.0, layers=[[2, 3]]),
    }


def make_distiller(teacher: Teacher, objectives: Mapping[str, Objective]) -> Distiller:
    """A distiller whose student has 2 of the teacher's 4 layers, with changed weights."""
    torch.manual_seed(0)
    student = make_student(teacher, [0, 3])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    prepare_objectives(objectives, teacher.model.config, student.config)
    return Distiller(teacher.model, student, objectives)


def make_batch(teacher: Teacher) -> MaskedBatch:
    """Two blocks, the second padded."""
    masking = Masking.for_tokenizer(teacher.tokenizer, 0.3, seed=0)
    words = masking.ordinary.numpy()
    ends = teacher.tokenizer.cls_token_id, teacher.tokenizer.sep_token_id
    blocks = [np.array([ends[0], *words[:n], ends[1]]) for n in (9, 5)]
    pad_id = int(teacher.tokenizer.pad_token_id)
    return masking(batch_blocks(blocks, [0, 1], pad_id=pad_id, masking=masking))


@pytest.fixture
def teacher(teacher_dir: TeacherDir) -> Teacher:
    return load_teacher(str(teacher_dir("bert", head=True)))


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[list[int]]:
    """A list that gets an item each time a model runs."""
    calls: list[int] = []
    handle = model.base_model.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_equal_transformers(teacher_dir: TeacherDir, family: str) -> None:
    """For both models, if an objective asks for the last layer only, and for others."""
    teacher = load_teacher(str(teacher_dir(family, head=True)))
    batch = make_batch(teacher)
    assert batch.attention is not None
    for layers in ([[0, 0], [1, 3], [2, 4]], [[2, 4]]):
        distiller = make_distiller(teacher, {"hidden": HiddenStates(layers=layers)}).eval()
        outputs = distiller.encode(batch)
        for side, (model, encoded) in enumerate(
            [(distiller.student, outputs.student), (teacher.model, outputs.target)]
        ):
            with torch.no_grad():
                expected = model(
                    input_ids=batch.inputs,
                    attention_mask=batch.attention,
                    output_hidden_states=True,
                ).hidden_states
            assert set(encoded.hidden_states) == {pair[side] for pair in layers}
            for number, hidden in encoded.hidden_states.items():
                torch.testing.assert_close(hidden, expected[number])
            torch.testing.assert_close(encoded.last_hidden, expected[-1])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_backward_through_the_outputs_of_the_teacher(
    teacher: Teacher, precision: torch.dtype
) -> None:
    """Gradients are the same as with a teacher that runs like any other model."""
    batch, objectives = make_batch(teacher), all_objectives()
    distiller = make_distiller(teacher, objectives)
    distiller.eval()  # without dropout, for comparison
    expected = plain_gradients(teacher, distiller, batch)
    teacher.model.to(precision)
    with torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
        outputs = distiller.encode(batch)
        loss = distiller.losses(outputs).total
    assert loss.dtype is torch.float32
    target = outputs.target
    tensors = [target.last_hidden, *target.hidden_states.values(), *target.attention[3]]
    assert not any(tensor.is_inference() or tensor.requires_grad for tensor in tensors)
    loss.backward()
    found = gradients(distiller)
    assert set(found) == {name for name, _ in distiller.named_parameters()}
    if precision is torch.float32:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    else:
        flat = (torch.cat([g[name].flatten() for name in expected]) for g in (found, expected))
        assert torch.cosine_similarity(next(flat), next(flat), dim=0) > 0.99


def plain_gradients(
    teacher: Teacher, distiller: Distiller, batch: MaskedBatch
) -> dict[str, Tensor]:
    """Both models run by transformers alone, in float32 and in one graph."""

    def encode(model: PreTrainedModel) -> Encoded:
        hidden = model(
            input_ids=batch.inputs, attention_mask=batch.attention, output_hidden_states=True
        ).hidden_states
        attention = {}
        for number, layer in enumerate(model.base_model.encoder.layer, start=1):
            own = layer.attention.self
            made = (linear(hidden[number - 1]) for linear in (own.query, own.key, own.value))
            attention[number] = Attention(*made)
        return Encoded(hidden[-1], dict(enumerate(hidden)), attention, masked_lm_head(model))

    outputs = Outputs(encode(teacher.model), encode(distiller.student), batch)
    # Each objective alone, as if there were no other.
    losses = {name: distiller.objective(name)(outputs) for name in distiller.objectives}
    means = {name: loss.sum / loss.positions for name, loss in losses.items()}
    distiller.total(means, 0).backward()
    found = gradients(distiller)
    distiller.zero_grad()
    return found


def gradients(distiller: Distiller) -> dict[str, Tensor]:
    return {name: p.grad for name, p in distiller.named_parameters() if p.grad is not None}


def test_losses_are_divided_by_the_positions_of_the_step(teacher: Teacher) -> None:
    """Of the whole step, if they are given; those of the batch if not."""
    objectives = all_objectives()
    distiller, batch = make_distiller(teacher, objectives).eval(), make_batch(teacher)
    losses = distiller(batch)
    assert list(losses.parts) == list(objectives)
    means = {name: loss.sum / loss.positions for name, loss in losses.parts.items()}
    torch.testing.assert_close(losses.total, distiller.total(means, 0))
    positions = dict(zip(objectives, (10, 20, 30, 40, 50), strict=True))
    shares = {name: loss.sum / positions[name] for name, loss in losses.parts.items()}
    torch.testing.assert_close(
        distiller(batch, positions=positions).total, distiller.total(shares, 0)
    )
    assert not any(loss.sum.requires_grad for loss in losses.parts.values())


def test_only_active_objectives_are_computed(teacher: Teacher) -> None:
    distiller, batch = make_distiller(teacher, all_objectives()), make_batch(teacher)
    with counted(teacher.model) as teacher_runs, counted(distiller.student) as student_runs:
        assert list(distiller(batch, 0, ("mlm",)).parts) == ["mlm"]
        assert (len(teacher_runs), len(student_runs)) == (0, 1)
        assert distiller.encode(batch, 0, ("mlm",)).teacher is None
        assert not distiller.encode(batch, 0, ("cosine",)).student.hidden_states
        teacher_runs.clear()
        assert list(distiller(batch, 0, ("cosine", "mlm")).parts) == ["cosine", "mlm"]
        assert len(teacher_runs) == 1
        assert list(distiller(batch).parts) == list(distiller.objectives)
        assert len(teacher_runs) == 2


def test_the_sum_has_the_weights_of_the_step(teacher: Teacher) -> None:
    objectives: dict[str, Objective] = {"mlm": MaskedLM([3.0, 0.5]), "cosine": Cosine(2.0)}
    distiller = make_distiller(teacher, objectives)
    means = {"mlm": torch.tensor(10.0), "cosine": torch.tensor(1.0)}
    assert float(distiller.total(means, 0)) == 32.0
    assert float(distiller.total(means, 1)) == 7.0
    assert float(distiller.total({"cosine": means["cosine"]}, 0)) == 2.0


def test_the_teacher_is_neither_trained_nor_saved(teacher: Teacher) -> None:
    distiller = make_distiller(teacher, all_objectives())
    own = {id(parameter) for parameter in distiller.parameters()}
    assert not own & {id(parameter) for parameter in teacher.model.parameters()}
    storages = {value.data_ptr() for value in distiller.state_dict().values()}
    assert not storages & {value.data_ptr() for value in teacher.model.state_dict().values()}
    assert {key.split(".")[0] for key in distiller.state_dict()} <= {"student", "objectives"}
    distiller.train()
    assert not teacher.model.training
    before = deepcopy(teacher.model.state_dict())
    distiller(make_batch(teacher)).total.backward()
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    for key, value in teacher.model.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_saved_student_has_no_trace_of_its_training(teacher: Teacher, tmp_path: Path) -> None:
    distiller, batch = make_distiller(teacher, all_objectives()), make_batch(teacher)
    distiller(batch)
    student = distiller.student.eval()
    student.save_pretrained(tmp_path)
    plain = make_student(teacher, [0, 3])
    saved, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert saved.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        found, expected = (
            model.eval()(input_ids=batch.inputs, attention_mask=batch.attention).logits
            for model in (saved, student)
        )
    torch.testing.assert_close(found, expected)


def test_nothing_of_a_batch_stays_in_memory(teacher: Teacher) -> None:
    """Neither the attention hooks nor the models keep references to it."""
    distiller, batch = make_distiller(teacher, all_objectives()), make_batch(teacher)
    outputs = distiller.encode(batch)
    tensors = [
        weakref.ref(tensor)
        for encoded in (outputs.student, outputs.target)
        for tensor in (encoded.last_hidden, *next(iter(encoded.attention.values())))
    ]
    assert len(tensors) == 8
    distiller.losses(outputs).total.backward()
    del outputs
    gc.collect()
    assert [tensor() for tensor in tensors] == [None] * 8
