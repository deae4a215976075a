"""The number of blocks in a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import AutoModel, BertConfig

from spacy_distil.distillation.encoder.distiller import Distiller
from spacy_distil.distillation.encoder.memory import (
    equal_parts,
    find_micro_batch,
    largest_that_fits,
)
from spacy_distil.distillation.encoder.objectives import (
    Cosine,
    Loss,
    MaskedLM,
    Objective,
    Outputs,
    prepare_objectives,
)
from spacy_distil.distillation.encoder.steps import EncoderStage
from spacy_distil.students.making import make_student
from spacy_distil.students.masking import Masking
from spacy_distil.students.teachers import Teacher, load_teacher
from tests.gpu.marks import real_gpu

TeacherDir = Callable[..., Path]


def prepare(
    teacher: Teacher, *, cpu: bool, cosine: Cosine | None = None
) -> tuple[Distiller, Accelerator, Masking, list[EncoderStage]]:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=cpu, mixed_precision="no")
    teacher.model.to(accelerator.device)
    student = make_student(teacher, [0]).to(accelerator.device)
    objectives: dict[str, Objective] = {"cosine": cosine or Cosine()}
    if teacher.has_mlm_head:
        objectives["masked_lm"] = MaskedLM()
    prepare_objectives(objectives, teacher.model.config, student.config)
    distiller = Distiller(teacher.model, student, objectives)
    masking = Masking.for_tokenizer(teacher.tokenizer, 0.15, seed=0).to(accelerator.device)
    names = tuple(objectives)
    stages = [
        EncoderStage(name, names[i:], 10 * i, 10 * i + 10, 1e-3, 0.1)
        for i, name in enumerate(names)
    ]
    return distiller, accelerator, masking, stages


@pytest.mark.parametrize(
    ("block_size", "largest_step", "expected"),
    [
        (512, 3, 3),  # the whole step
        (512, 128, 8),  # 4,096 pieces
        (500, 128, 8),
        (32, 128, 128),
        (8192, 128, 1),  # at least one block
        (8192, 1, 1),
    ],
)
def test_on_a_cpu_the_limit_is_the_step_or_4096_pieces(
    teacher_dir: TeacherDir, block_size: int, largest_step: int, expected: int
) -> None:
    teacher = load_teacher(str(teacher_dir("bert", head=True)))
    distiller, accelerator, masking, stages = prepare(teacher, cpu=True)
    found = find_micro_batch(
        distiller,
        stages,
        accelerator,
        masking=masking,
        block_size=block_size,
        largest_step=largest_step,
    )
    assert found == expected


@pytest.mark.parametrize(
    ("whole", "largest", "expected"),
    [(128, 128, 128), (128, 200, 128), (128, 127, 64), (128, 70, 64), (100, 30, 25), (7, 3, 3)],
)
def test_a_step_has_equal_parts(whole: int, largest: int, expected: int) -> None:
    assert equal_parts(whole, largest) == expected


class Watched(Cosine):
    """The cosine, which notes in each pass which parameters have gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[set[str]] = []
        self.student: torch.nn.Module | None = None

    def forward(self, outputs: Outputs) -> Loss:
        assert self.student is not None
        named = self.student.named_parameters()
        self.seen.append({name for name, p in named if p.grad is not None})
        return super().forward(outputs)


def test_trials_have_gradients_of_earlier_micro_batches(teacher_dir: TeacherDir) -> None:
    teacher = load_teacher(str(teacher_dir("bert", head=False)))
    watched = Watched()
    distiller, accelerator, masking, stages = prepare(teacher, cpu=True, cosine=watched)
    watched.student = distiller.student
    found = largest_that_fits(
        distiller, stages, accelerator, masking=masking, block_size=16, upper=3
    )
    assert found == 3
    learning = {name for name, p in distiller.student.named_parameters() if p.requires_grad}
    assert watched.seen == [learning] * len(stages)
    assert all(parameter.grad is None for parameter in distiller.parameters())


@pytest.mark.gpu
@real_gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
def test_on_a_gpu_the_limit_is_memory(teacher_dir: TeacherDir, tmp_path: Path) -> None:
    """Less memory means fewer blocks. They fit, and no gradient stays behind."""
    tiny = load_teacher(str(teacher_dir("bert", head=True)))
    config = BertConfig(
        vocab_size=len(tiny.tokenizer), hidden_size=256, num_hidden_layers=4, num_attention_heads=4
    )
    AutoModel.from_config(config, add_pooling_layer=False).save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    distiller, accelerator, masking, stages = prepare(load_teacher(str(tmp_path)), cpu=False)

    def find(largest_step: int) -> int:
        return find_micro_batch(
            distiller,
            stages,
            accelerator,
            masking=masking,
            block_size=512,
            largest_step=largest_step,
        )

    assert find(2) == 2
    total = torch.cuda.get_device_properties(0).total_memory
    taken = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction((taken + 400e6) / total)
    try:
        found = find(1000)
        assert 1 <= found < 100
        assert all(parameter.grad is None for parameter in distiller.parameters())
        assert torch.cuda.memory_allocated() <= taken + 1e6
        assert find(found) == found
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
