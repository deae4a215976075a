"""Several processes and one process have the same losses and the same student."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spacy_distil.distillation import distil_encoder
from tests.teachers import log_of

TeacherDir = Callable[..., Path]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_available(), reason="torch without torch.distributed"
    ),
]

# A step has an odd number of blocks, so that two processes have unequal shares and micro-batches.
# The stages are not in alphabetical order, and use different parts of the student. One objective
# learns a projection.
STAGES = """
[stages]

[stages.transfer]
objectives = ["hidden", "relations"]
share = 1

[stages.predict]
objectives = ["soft_targets", "masked_lm"]
share = 2
"""
CONFIG = """
[teacher]
name = "{teacher}"

[student]
n_layers = 2
heads = 1
width = 8

[corpus]
train = "{text}"
block_size = 24
dev_fraction = 0.1

[objectives]

[objectives.hidden]
@distil_objectives = "spacy-distil.HiddenStates.v1"
layers = [[1, 2]]

[objectives.soft_targets]
@distil_objectives = "spacy-distil.SoftTargets.v1"
weight = 5.0

[objectives.masked_lm]
@distil_objectives = "spacy-distil.MaskedLM.v1"
weight = 2.0

[objectives.relations]
@distil_objectives = "spacy-distil.Relations.v1"
{stages}
[training]
max_steps = 12
batch_size = 7
micro_batch = {micro_batch}
mixed_precision = "no"
log_frequency = 1
eval_frequency = 6
checkpoint_frequency = 4
tensorboard = false
"""


def command(config: Path, output: Path, *options: str) -> list[str]:
    """A run in two processes."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = ["spacy", "distil", "encoder", str(config), "--output", str(output), "--gpu-id", "-1"]
    return [sys.executable, "-m", *launcher, "-m", *run, *options]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def losses(output: Path) -> list[dict[str, float]]:
    left_out = ("pieces_per_second", "kind", "stage")
    return [{k: v for k, v in line.items() if k not in left_out} for line in log_of(output)]


def assert_same(first: Path, second: Path) -> None:
    for a, b in zip(losses(first), losses(second), strict=True):
        assert a == pytest.approx(b, rel=2e-4, abs=1e-6)
    one, two = (load_file(path / "model.safetensors") for path in (first, second))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)


def run_alone(directory: Path, teacher: Path, text: Path, stages: str) -> tuple[Path, Path]:
    """Return a config, and the output of one process that takes all blocks of a step at once."""
    config = directory / "distil.cfg"
    config.write_text(CONFIG.format(teacher=teacher, text=text, micro_batch=7, stages=stages))
    distil_encoder(config, directory / "out", gpu_id=-1)
    return config, directory / "out"


@pytest.fixture(scope="module")
def alone(
    teacher_dir: TeacherDir, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    teacher = teacher_dir("bert", head=True)
    return run_alone(tmp_path_factory.mktemp("alone"), teacher, text_file, STAGES)


def test_two_processes_equal_one(alone: tuple[Path, Path], tmp_path: Path) -> None:
    assert_two_equal_one(*alone, tmp_path)


def test_two_processes_equal_one_without_unused_parameters(
    teacher_dir: TeacherDir, text_file: Path, tmp_path: Path
) -> None:
    """Without stages, each step uses the whole student, and nobody looks for the rest."""
    (tmp_path / "alone").mkdir()
    one = run_alone(tmp_path / "alone", teacher_dir("bert", head=True), text_file, "")
    assert_two_equal_one(*one, tmp_path)


def test_two_processes_equal_one_on_several_languages(
    teacher_dir: TeacherDir, text_file: Path, tmp_path: Path
) -> None:
    """A language has one held-out block, so the second process scores none of it."""
    small = tmp_path / "small.txt"
    small.write_text(text_file.read_text()[:400])
    config = tmp_path / "distil.cfg"
    text = CONFIG.format(teacher=teacher_dir("bert", head=True), text="", micro_batch=7, stages="")
    languages = f'[corpus.languages]\na = "{text_file}"\nb = "{small}"\n\n[objectives]\n'
    text = text.replace('train = ""', "alpha = 0.3").replace("[objectives]\n", languages, 1)
    config.write_text(text)
    distil_encoder(config, tmp_path / "alone", gpu_id=-1)
    entries = log_of(tmp_path / "alone", "held_out")
    assert all(entry["a/total"] != entry["b/total"] for entry in entries)
    assert_two_equal_one(config, tmp_path / "alone", tmp_path)


def assert_two_equal_one(config: Path, expected: Path, tmp_path: Path) -> None:
    arguments = command(config, tmp_path / "out", "--training.micro_batch", "3")
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=240, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(losses(expected)) == 12 + 3
    assert_same(expected, tmp_path / "out")


def test_a_run_goes_on_with_another_number_of_processes(
    alone: tuple[Path, Path], tmp_path: Path
) -> None:
    """Two processes are interrupted in the middle, and one resumes the run."""
    config, expected = alone
    output = tmp_path / "out"
    processes = subprocess.Popen(
        command(config, output),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(output.glob("checkpoints/step-*")):
        assert processes.poll() is None, "the run ended before the signal"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    processes.send_signal(signal.SIGTERM)  # torchrun hands it to its processes
    text = processes.communicate(timeout=60)[0]
    assert processes.returncode != 0
    assert "stopped by SIGTERM after step" in text
    assert not (output / "model.safetensors").exists(), text
    distil_encoder(config, output, gpu_id=-1, resume=True)
    assert_same(expected, output)


FAILING = """
import sys
from accelerate import Accelerator
from spacy_distil.distillation.encoder.processes import on_main

class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("no")

def fail():
    raise Unpicklable("the disk is gone")

accelerator = Accelerator(cpu=True)
try:
    on_main(accelerator, fail)
except Exception as error:
    print(f"{accelerator.process_index}: {error!r}\\n", end="", flush=True)
accelerator.end_training()
"""


def test_an_unknown_error_of_the_main_process_ends_all(tmp_path: Path) -> None:
    """The others do not wait for it until the broadcast's timeout."""
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.run(
        [sys.executable, "-m", *launcher, str(script)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert sorted(line for line in process.stdout.splitlines() if line) == [
        "0: Unpicklable('the disk is gone')",
        """1: DistilError("Unpicklable('the disk is gone')")""",
    ], process.stderr
