"""Encoder distillation on a GPU: the same masks and, in float32, the same losses as on the CPU."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from spacy_distil.distillation import distil_encoder
from spacy_distil.distillation.encoder.distiller import Distiller
from spacy_distil.distillation.encoder.objectives import (
    Cosine,
    HiddenStates,
    Objective,
    Relations,
    SoftTargets,
    prepare_objectives,
)
from spacy_distil.distillation.encoder.trainer import Trainer
from spacy_distil.students.making import make_student
from spacy_distil.students.masking import BlockBatch, Masking, batch_blocks
from spacy_distil.students.teachers import load_teacher
from tests.cuda_simulation.device import is_active
from tests.cuda_simulation.waits import waits
from tests.gpu.marks import real_gpu
from tests.teachers import WORDS, log_of, write_teacher

IS_VERSION_4 = transformers.__version__.startswith("4.")
GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("distil")
    write_teacher(directory / "teacher", "bert", head=True)
    rng = random.Random(0)
    lines = (" ".join(rng.choices(WORDS, k=30)) for _ in range(150))
    (directory / "text.txt").write_text("\n\n".join(lines))
    kinds = ("SoftTargets", "MaskedLM", "Cosine", "HiddenStates", "Relations")
    return {
        "teacher": {"name": str(directory / "teacher")},
        "student": {"n_layers": 2, "ffn": 16},
        # Without the last, shorter block.
        "corpus": {"train": str(directory / "text.txt"), "block_size": 24, "max_blocks": 100},
        "objectives": {kind: {"@distil_objectives": f"spacy-distil.{kind}.v1"} for kind in kinds},
        "training": {"max_steps": 8, "batch_size": 8, "log_frequency": 1, "tensorboard": False},
    }


def losses(output: Path) -> np.ndarray:
    """Return the losses by step and objective."""
    train = log_of(output, "train")
    return np.array([[v for name, v in line.items() if name[0].isupper()] for line in train])


def test_masks_are_those_of_the_cpu() -> None:
    masking = Masking(
        0.15, seed=3, mask_id=4, is_special=torch.arange(999) < 5, ordinary=torch.arange(5, 999)
    )
    blocks = list(np.random.default_rng(0).integers(0, 999, (16, 64)))
    rows = batch_blocks([*blocks, blocks[0][:20]], range(17), pad_id=0, masking=masking)
    expected, found = masking(rows), masking.to(GPU)(rows.to(GPU))
    for name in ("inputs", "attention", "real", "masked", "labels"):
        assert torch.equal(getattr(found, name).cpu(), getattr(expected, name))


def test_losses_are_those_of_the_cpu(config: dict[str, Any], tmp_path: Path) -> None:
    for name, gpu_id in (("cpu", -1), ("gpu", 0)):
        exact = {"training.mixed_precision": "no"}
        distil_encoder(config, tmp_path / name, overrides=exact, gpu_id=gpu_id)
    cpu, gpu = losses(tmp_path / "cpu"), losses(tmp_path / "gpu")
    assert cpu.shape == (8, 5)
    np.testing.assert_allclose(gpu, cpu, rtol=0.02, atol=2e-3)


def test_bfloat16_trains(config: dict[str, Any], tmp_path: Path) -> None:
    overrides = {"training.max_steps": 60, "training.learn_rate": 5e-3}
    distil_encoder(config, tmp_path / "out", overrides=overrides)
    found = losses(tmp_path / "out")
    assert (found[-5:].mean(0) < found[:5].mean(0)).all()


def test_a_teacher_in_bfloat16(config: dict[str, Any]) -> None:
    """Its hidden states stay in bfloat16, and the losses are near those of float32."""
    teacher = load_teacher(config["teacher"]["name"])
    student = make_student(teacher, [0, 1])
    objectives: dict[str, Objective] = {
        "soft_targets": SoftTargets(),
        "cosine": Cosine(),
        "hidden": HiddenStates(),
        "relations": Relations(layers=[[1, 2]]),
    }
    prepare_objectives(objectives, teacher.model.config, student.config)
    distiller = Distiller(teacher.model, student, objectives).to(GPU).eval()
    masking = Masking.for_tokenizer(teacher.tokenizer, 0.15, seed=0)
    blocks = list(np.random.default_rng(0).integers(5, 60, (8, 24)))
    batch = masking.to(GPU)(batch_blocks(blocks, range(8), pad_id=0, masking=masking).to(GPU))
    means = []
    for dtype in (torch.float32, torch.bfloat16):
        teacher.model.to(GPU, dtype)
        with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype is torch.bfloat16):
            outputs = distiller.encode(batch)
            losses = distiller.losses(outputs).parts
        states = [outputs.target.last_hidden, *outputs.target.hidden_states.values()]
        assert {state.dtype for state in (*states, *outputs.target.attention[2])} == {dtype}
        means.append([float(loss.sum) / loss.positions for loss in losses.values()])
    np.testing.assert_allclose(means[1], means[0], rtol=0.03)


@real_gpu
def test_compiled_it_learns_the_same(config: dict[str, Any], tmp_path: Path) -> None:
    for name in ("plain", "compiled"):
        changed = {"training.mixed_precision": "no", "training.compile": name == "compiled"}
        distil_encoder(config, tmp_path / name, overrides=changed, gpu_id=0)
    np.testing.assert_allclose(
        losses(tmp_path / "compiled"), losses(tmp_path / "plain"), rtol=1e-2, atol=1e-3
    )


@pytest.mark.skipif(not is_active(), reason="counts the waits of the simulated GPU")
def test_only_transformers_waits_in_a_step(config: dict[str, Any], tmp_path: Path) -> None:
    """Version 4 looks into the mask in each pass of each model, version 5 does not."""
    step, notes = Trainer.step, list[str]()
    pin, threads = BlockBatch.pin_memory, list[str]()

    def noted(self: BlockBatch) -> BlockBatch:
        threads.append(threading.current_thread().name)
        return pin(self)

    def watched(self: Trainer, number: int, *arguments: Any) -> Any:
        if number == 0:  # sets up the optimizer's state
            return step(self, number, *arguments)
        with waits.watch() as found:
            norm = step(self, number, *arguments)
        notes.extend(found)
        return norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", watched)
        patch.setattr(BlockBatch, "pin_memory", noted)
        changed = {"training.log_frequency": 8, "training.micro_batch": 4}
        distil_encoder(config, tmp_path / "out", overrides=changed, gpu_id=0)
    assert not [note for note in notes if "/transformers/" not in note]
    # The thread that prepares batches also pins them.
    assert len(threads) == 8 * 2
    assert all(name.startswith("distil-data") for name in threads)
    # 7 steps of 2 micro-batches, for student and teacher.
    assert len(notes) == (7 * 2 * 2 if IS_VERSION_4 else 0)


@pytest.mark.skipif(IS_VERSION_4, reason="version 4 looks into masks in every pass")
def test_a_step_does_not_wait_for_the_gpu(config: dict[str, Any], tmp_path: Path) -> None:
    """torch raises if the CPU waits. The loop may wait when it logs, evaluates and saves."""
    step = Trainer.step

    def watched(self: Trainer, number: int, *arguments: Any) -> Any:
        # Kernels and the optimizer's state are set up in the first steps.
        torch.cuda.set_sync_debug_mode("error" if number > 2 else "default")
        try:
            return step(self, number, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", watched)
        distil_encoder(config, tmp_path / "out", overrides={"training.log_frequency": 8})
