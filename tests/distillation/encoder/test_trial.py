"""Passes on made-up text, before the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from spacy_distil.distillation.encoder.steps import EncoderStage
from spacy_distil.distillation.encoder.trial import has_unused_parameters
from spacy_distil.students.teachers import load_teacher
from tests.distillation.encoder.test_memory import prepare

TeacherDir = Callable[..., Path]


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([["cosine", "masked_lm"]], False),
        ([["masked_lm"]], False),
        ([["cosine"]], True),  # without the student's head
        ([["masked_lm"], ["cosine"]], True),
        ([["cosine"], ["cosine", "masked_lm"]], True),
        ([["masked_lm"], ["cosine", "masked_lm"]], False),
    ],
)
def test_unused_parameters_of_any_stage_are_found(
    teacher_dir: TeacherDir, stages: list[list[str]], expected: bool
) -> None:
    teacher = load_teacher(str(teacher_dir("bert", head=True)))
    distiller, accelerator, masking, _ = prepare(teacher, cpu=True)
    planned = [
        EncoderStage(str(i), tuple(names), 10 * i, 10 * i + 10, 1e-3, 0.1)
        for i, names in enumerate(stages)
    ]
    found = has_unused_parameters(distiller, planned, accelerator, masking=masking, block_size=16)
    assert found == expected
    assert all(parameter.grad is None for parameter in distiller.parameters())
