"""Held-out scores against plain loops over the blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from spacy_distil.distillation.encoder.distiller import Distiller
from spacy_distil.distillation.encoder.evaluation import evaluate
from spacy_distil.distillation.encoder.objectives import (
    Cosine,
    MaskedLM,
    Objective,
    SoftTargets,
    prepare_objectives,
    vocabulary,
)
from spacy_distil.students.making import make_student
from spacy_distil.students.masking import MaskedBatch, Masking, batch_blocks
from spacy_distil.students.teachers import Teacher, load_teacher

TeacherDir = Callable[..., Path]
N_BLOCKS = 11


@pytest.fixture
def accelerator() -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True, mixed_precision="no")


@pytest.fixture
def teacher(teacher_dir: TeacherDir) -> Teacher:
    """A teacher that predicts some words correctly, since there are so few."""
    loaded = load_teacher(str(teacher_dir("bert", head=True)))
    loaded.model.get_output_embeddings().bias[words(loaded)] += 30
    return loaded


def words(teacher: Teacher) -> Tensor:
    return Masking.for_tokenizer(teacher.tokenizer, 0.3, seed=0).ordinary[:4]


def make_distiller(teacher: Teacher, objectives: dict[str, Objective]) -> Distiller:
    """A distiller whose student has dropout, which must not affect the scores."""
    student = make_student(teacher, [0, 2])
    assert student.config.hidden_dropout_prob == 0.1
    prepare_objectives(objectives, teacher.model.config, student.config)
    return Distiller(teacher.model, student, objectives).train()


def batches(teacher: Teacher, size: int, probability: float = 0.3) -> list[MaskedBatch]:
    """Random words in blocks of 20 pieces, the last of 8."""
    masking = Masking.for_tokenizer(teacher.tokenizer, probability, seed=0)
    random = np.random.default_rng(0)
    lengths = [20] * (N_BLOCKS - 1) + [8]
    blocks = [random.choice(words(teacher).numpy(), length) for length in lengths]
    for block in blocks:
        block[0], block[-1] = teacher.tokenizer.cls_token_id, teacher.tokenizer.sep_token_id
    made = []
    for start in range(0, N_BLOCKS, size):
        part = slice(start, start + size)
        places = range(N_BLOCKS)[part]
        made.append(masking(batch_blocks(blocks[part], places, pad_id=0, masking=masking)))
    return made


@pytest.mark.parametrize("size", [1, 4, N_BLOCKS])
def test_scores_are_means_over_positions_for_any_size_of_batches(
    teacher: Teacher, accelerator: Accelerator, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "CPU_CHUNK_ROWS", 7)
    distiller = make_distiller(
        teacher,
        {"soft": SoftTargets([9.0, 5.0], temperature=2.0), "mlm": MaskedLM(2.0), "cos": Cosine()},
    )
    found = evaluate(
        distiller, {"": batches(teacher, size)}, accelerator, distiller.objectives, step=1
    )
    assert distiller.training  # as before

    names = ("soft", "mlm", "cos", "student_accuracy", "teacher_accuracy")
    rows: dict[str, list[float]] = {name: [] for name in names}
    student = distiller.student.eval()
    for batch in batches(teacher, 1):
        with torch.no_grad():
            own, target = (
                model(input_ids=batch.inputs, output_hidden_states=True)
                for model in (student, teacher.model)
            )
        p, q = (out.logits[0, batch.masked] for out in (target, own))
        softened = F.kl_div((q / 2).log_softmax(-1), (p / 2).softmax(-1), reduction="none")
        rows["soft"] += (4 * softened.sum(-1)).tolist()
        rows["mlm"] += F.cross_entropy(q, batch.labels, reduction="none").tolist()
        a, b = (out.hidden_states[-1][0] for out in (own, target))
        rows["cos"] += (1 - torch.cosine_similarity(a, b, dim=-1)).tolist()
        for name, logits in (("student_accuracy", q), ("teacher_accuracy", p)):
            rows[name] += (logits.argmax(-1) == batch.labels).tolist()
    expected = {name: sum(values) / len(values) for name, values in rows.items()}
    expected["total"] = 5 * expected["soft"] + 2 * expected["mlm"] + expected["cos"]
    assert found == pytest.approx(expected, rel=1e-5)
    assert 0 < expected["student_accuracy"] != expected["teacher_accuracy"] > 0


def test_accuracy_needs_masked_pieces_and_a_head(
    teacher: Teacher, teacher_dir: TeacherDir, accelerator: Accelerator
) -> None:
    unmasked = batches(teacher, 4, probability=0.0)
    distiller = make_distiller(teacher, {"cos": Cosine()})
    assert set(evaluate(distiller, {"": unmasked}, accelerator, distiller.objectives, step=0)) == {
        "cos",
        "total",
    }
    bare = load_teacher(str(teacher_dir("bert", head=False)))
    distiller = make_distiller(bare, {"cos": Cosine()})
    assert set(
        evaluate(distiller, {"": batches(bare, 4)}, accelerator, distiller.objectives, step=0)
    ) == {"cos", "total"}
    # A teacher that does not run has no score.
    distiller = make_distiller(teacher, {"mlm": MaskedLM()})
    scores = evaluate(
        distiller, {"": batches(teacher, 4)}, accelerator, distiller.objectives, step=0
    )
    assert set(scores) == {"mlm", "total", "student_accuracy"}


def test_mixed_precision_is_near(teacher: Teacher, accelerator: Accelerator) -> None:
    distiller = make_distiller(teacher, {"mlm": MaskedLM(), "cos": Cosine()})
    exact = evaluate(
        distiller, {"": batches(teacher, 4)}, accelerator, distiller.objectives, step=0
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    mixed = Accelerator(cpu=True, mixed_precision="bf16")
    teacher.model.to(torch.bfloat16)
    found = evaluate(distiller, {"": batches(teacher, 4)}, mixed, distiller.objectives, step=0)
    assert found != exact
    for name in ("mlm", "cos", "total"):
        assert found[name] == pytest.approx(exact[name], rel=0.05)
