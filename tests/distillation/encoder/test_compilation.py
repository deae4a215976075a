"""`training.compile`: the same run through kernels of torch's compiler."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import torch._inductor.config
from safetensors.numpy import load_file
from torch._dynamo.utils import counters

from spacy_distil.distillation import distil_encoder
from spacy_distil.distillation.encoder import compilation
from spacy_distil.errors import ConfigError
from tests.teachers import log_of, write_teacher
from tests.util import same

TeacherDir = Callable[..., Path]
KINDS = ("SoftTargets", "MaskedLM", "Cosine", "HiddenStates", "Relations")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++"),
]


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def settings(teacher: Path, text: Path) -> dict[str, Any]:
    return {
        "teacher": {"name": str(teacher)},
        "student": {"n_layers": 1},  # torch takes seconds to compile a layer
        "corpus": {
            "train": str(text),
            "block_size": 24,
            "max_blocks": 33,
            "dev_fraction": 0.06,  # 2 blocks: torch would compile the models again for 1
        },
        "objectives": {kind: {"@distil_objectives": f"spacy-distil.{kind}.v1"} for kind in KINDS},
        "training": {
            "max_steps": 4,
            "batch_size": 6,
            "micro_batch": 4,  # the second micro-batch of a step has 2 blocks
            "log_frequency": 1,
            "mixed_precision": "no",
            "tensorboard": False,
        },
    }


def losses(output: Path) -> np.ndarray:
    """(entries of the log, objectives)."""
    return np.array([[line[kind] for kind in KINDS] for line in log_of(output)])


def test_it_learns_the_same(text_file: Path, tmp_path: Path) -> None:
    write_teacher(tmp_path / "teacher", "bert", head=True, layers=2)
    config = settings(tmp_path / "teacher", text_file)
    plain = distil_encoder(config, tmp_path / "plain", gpu_id=-1)
    assert not counters["stats"]
    overrides = {"training.compile": True}
    compiled = distil_encoder(config, tmp_path / "compiled", overrides=overrides, gpu_id=-1)
    assert counters["stats"]["unique_graphs"] >= 2  # student and teacher
    expected = losses(plain.path)
    assert expected.shape == (6, 5)
    np.testing.assert_allclose(losses(compiled.path), expected, rtol=1e-4, atol=1e-6)
    weights = [load_file(run.path / "model.safetensors") for run in (compiled, plain)]
    assert same(*weights, atol=1e-4)


STAGES = {
    "hidden": {"objectives": ["HiddenStates"]},
    "relations": {"objectives": ["Relations"]},
    "predict": {"objectives": ["SoftTargets", "MaskedLM", "Cosine"]},
}


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch trace models as it does to compile them, without making kernels."""
    make = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: make(self, backend="eager"))


def compiled_graphs(text_file: Path, output: Path, stages: dict[str, Any]) -> int:
    """Count the graphs that torch compiles for a run of 6 steps. The last block is padded."""
    write_teacher(output / "teacher", "bert", head=True, layers=2)
    config = settings(output / "teacher", text_file)
    config["corpus"]["max_blocks"] = None
    config["objectives"]["HiddenStates"]["layers"] = [[0, 0], [1, 1]]
    config["training"] |= {"compile": True, "max_steps": 6, "eval_frequency": 2}
    torch._dynamo.reset()
    counters.clear()
    distil_encoder({**config, "stages": stages}, output / "out", gpu_id=-1)
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.usefixtures("traced")
def test_stages_are_compiled_no_more_often(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The encoders return the same layers in all stages."""
    one = compiled_graphs(text_file, tmp_path / "one", {})
    assert compiled_graphs(text_file, tmp_path / "three", STAGES) == one
    assert "torch has compiled" not in capsys.readouterr().out


@pytest.mark.usefixtures("traced")
def test_a_limit_that_is_reached_is_told(
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, although many batches run without being compiled. The run goes on."""
    monkeypatch.setattr(compilation, "MAX_COMPILATIONS", 2)
    assert compiled_graphs(text_file, tmp_path, {}) >= 2
    text = capsys.readouterr().out
    assert text.count("torch has compiled the encoders 2 times for different inputs.") == 1
    assert "Encoder saved to" in text


def test_compile_errors_are_explained(
    teacher_dir: TeacherDir, text_file: Path, tmp_path: Path
) -> None:
    config = settings(teacher_dir("bert", head=True), text_file)
    config["training"]["compile"] = True
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",)}),
        pytest.raises(ConfigError, match=r"(?s)training.compile.*C\+\+.*Set training.compile ="),
    ):
        distil_encoder(config, tmp_path / "out", gpu_id=-1)
