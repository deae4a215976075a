"""Detecting diverged training by gradients and losses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spacy_distil.distillation import distil_encoder
from spacy_distil.distillation.encoder.divergence import Divergence
from spacy_distil.distillation.encoder.objectives import Cosine, Loss, Outputs, distil_objectives
from spacy_distil.errors import DistilError
from tests.teachers import log_of


def divergence() -> Divergence:
    return Divergence(torch.device("cpu"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_bad_step_is_found_later(bad: float) -> None:
    watch = divergence()
    norms = {1: 0.5, 2: 1e30, 3: bad, 4: 0.5, 5: math.nan}
    for step, norm in norms.items():
        watch.note(step, torch.tensor(norm))
        if step < 3:
            assert watch.bad_step() is None
    assert watch.bad_step() == 3


def test_finite_gradients_are_not_bad() -> None:
    watch = divergence()
    assert watch.bad_step() is None
    for step in range(1, 50):
        watch.note(step, torch.tensor(float(step)))
    assert watch.bad_step() is None


@pytest.mark.parametrize(
    ("first", "highest"),
    [
        (5.0, 50.0),  # ten times
        (0.05, 1.05),  # for small losses, by 1
        (0.0, 1.0),  # a student that starts as its teacher
    ],
)
def test_a_loss_may_rise_to_ten_times_its_first_value_and_by_one(
    first: float, highest: float
) -> None:
    watch = divergence()
    for loss in (first, first / 2, highest - 1e-6):
        assert watch.risen_loss("stage", {"hidden": loss}) is None
    assert watch.risen_loss("stage", {"hidden": highest + 1e-6}) == "hidden"


def test_each_loss_is_compared_with_its_own_first_value() -> None:
    watch = divergence()
    assert watch.risen_loss("stage", {"hidden": 1.0, "masked_lm": 100.0}) is None
    assert watch.risen_loss("stage", {"hidden": 2.0, "masked_lm": 500.0}) is None
    assert watch.risen_loss("stage", {"hidden": 30.0, "masked_lm": 100.0}) == "hidden"


def test_a_new_stage_has_its_own_first_values() -> None:
    watch = divergence()
    assert watch.risen_loss("transfer", {"hidden": 0.1}) is None
    assert watch.risen_loss("predict", {"hidden": 40.0}) is None
    assert watch.risen_loss("predict", {"hidden": 90.0}) is None
    assert watch.risen_loss("predict", {"hidden": 401.0}) == "hidden"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_risen_at_once(loss: float) -> None:
    assert divergence().risen_loss("stage", {"masked_lm": 5.0, "hidden": loss}) == "hidden"


# Whole runs


class Spoilt(Cosine):
    """The cosine, which is wrong from a step on: multiplied by `kind`, or "risen"."""

    def __init__(self, step: int, kind: str) -> None:
        super().__init__(1.0)
        self.step = step
        self.kind = kind

    def forward(self, outputs: Outputs) -> Loss:
        found = super().forward(outputs)
        if outputs.step + 1 < self.step:
            return found
        if self.kind == "risen":
            return Loss(found.sum * 1e-3 + 40.0 * found.positions, found.positions)
        return Loss(found.sum * float(self.kind), found.positions)


@pytest.fixture
def config(teacher_dir: Callable[..., Path], text_file: Path) -> Callable[..., dict[str, Any]]:
    if "tests.Spoilt.v1" not in distil_objectives:
        distil_objectives.register("tests.Spoilt.v1", func=Spoilt)

    def make(step: int, kind: str, **training: Any) -> dict[str, Any]:
        block = {"@distil_objectives": "tests.Spoilt.v1", "step": step, "kind": kind}
        quick = {"max_steps": 12, "batch_size": 4, "micro_batch": 4, "mixed_precision": "no"}
        return {
            "teacher": {"name": str(teacher_dir("bert", head=False))},
            "student": {"n_layers": 2},
            "corpus": {"train": str(text_file), "block_size": 24, "max_blocks": 40},
            "objectives": {"cosine": block},
            "training": {**quick, "tensorboard": False, **training},
        }

    return make


def test_a_run_names_the_first_bad_step_and_its_blocks(
    config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Even if losses are first read at step 8. The kept checkpoint is older than the bad step."""
    settings = config(6, "nan", log_frequency=8, checkpoint_frequency=4)
    with pytest.raises(DistilError) as error:
        distil_encoder(settings, tmp_path / "out", gpu_id=-1)
    for part in (
        "the gradient of step 6 is not finite: training has diverged",
        "The checkpoint of step 4 is kept",
        str(tmp_path / "out" / "diverged.json"),
    ):
        assert part in str(error.value)
    found = json.loads((tmp_path / "out" / "diverged.json").read_text())
    assert found["step"] == 6
    assert len(found["blocks"]) == 4
    names = [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()]
    assert names == ["step-00000004.pt"]


def test_a_resumed_run_compares_with_the_beginning_of_the_stage(
    config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Not with the losses when it resumes, which may have diverged already."""
    output = tmp_path / "out"
    settings = config(5, "risen", log_frequency=4, checkpoint_frequency=5)
    message = r"the loss 'cosine' has risen to 40\S* by step 8.*The checkpoint of step 5 is kept"
    for resume in (False, True):
        with pytest.raises(DistilError, match=message):
            distil_encoder(settings, output, gpu_id=-1, resume=resume)
    assert [line["step"] for line in log_of(output, "train")] == [4]
