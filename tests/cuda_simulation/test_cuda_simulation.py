"""The tests of `tests/gpu` on the simulated device, in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cuda_simulation.library import find_compiler

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ["-p", "tests.cuda_simulation.plugin", "-p", "no:cacheprovider"]
OWN = "tests/cuda_simulation/test_tensors.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_compiler() is None, reason="the simulated GPU needs a C++ compiler"),
    pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch is built for real GPUs"),
    pytest.mark.skipif(sys.platform != "linux", reason="the simulated GPU is for Linux"),
]


def run_tests(*arguments: str) -> tuple[str, dict[str, int]]:
    """Run pytest on the simulated device, without tests of CuPy, which needs a real one.

    RETURNS: the output, and the number of tests by outcome.
    """
    command = [sys.executable, "-m", "pytest", *PLUGIN, "-v", "-k", "not cupy", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    output = done.stdout + done.stderr
    counts = dict.fromkeys(("passed", "skipped", "failed", "error"), 0)
    last = done.stdout.strip().splitlines()[-1]
    counts |= {name: int(n) for n, name in re.findall(r"(\d+) (passed|skipped|failed|error)", last)}
    return output, counts


def test_the_device() -> None:
    output, counts = run_tests(OWN)
    assert (counts["failed"], counts["error"], counts["skipped"]) == (0, 0, 0), output
    assert counts["passed"] > 10


def test_the_component() -> None:
    """Every test runs that needs neither CuPy nor a real GPU."""
    output, counts = run_tests("tests/gpu/test_gpu.py", "tests/gpu/test_waits.py")
    assert (counts["failed"], counts["error"]) == (0, 0), output
    assert counts["passed"] > 40
    assert counts["skipped"] == 2, output  # of memory, and of forked processes


def test_encoder_distillation() -> None:
    output, counts = run_tests("tests/gpu/test_distillation.py")
    assert (counts["failed"], counts["error"]) == (0, 0), output
    assert "test_only_transformers_waits_in_a_step PASSED" in output
    assert counts["skipped"] <= 2, output  # compiled; with transformers 4, the strict test of waits
