"""Runs and commands on disks that are too small for them."""

from __future__ import annotations

import random
import unittest
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests import tiny_runs
from tests.campaigns import _disks
from tests.campaigns.outcome import Deadline, Outcome
from tests.children import ChildError, workplace
from tests.children import run as run_child

PROMISE = (
    "A run or a command whose disk becomes full ends with one sentence, an error of our own. The "
    "result that it was to replace stays as it was, nothing unfinished is left behind, and with "
    "more room the same command, or --resume, gives the result that it gives on a large disk."
)
COMMANDS = ("quantize", "pipeline", "student", "encoder", "convert", "adapt", "to_disk")
SIZES = 10
SHORT = 5


def run(n: int, seed: int, deadline: Deadline) -> Outcome:
    """Run n cases. See the package. Each command has the same number of cases for each size."""
    outcome = Outcome()
    with workplace() as directory:
        inputs, disk = directory / "inputs", directory / "disk"
        for path in (inputs, disk):
            path.mkdir()
        run_child((tiny_runs.prepare_encoder, (inputs,)))
        run_child((tiny_runs.prepare_pipeline, (inputs,)))
        commands = [c for c in COMMANDS[:n] if c != "convert" or find_spec("spacy_transformers")]
        if "convert" in commands:
            run_child((tiny_runs.prepare_interop, (inputs,)))
        full = dict.fromkeys(commands, 0)
        needs = {name: _measure(name, inputs, disk, directory / f"{name}-old") for name in commands}
        for i in range(n):
            if deadline.passed():
                break
            name, rng = commands[i % len(commands)], random.Random(f"{seed} {i}")
            before, peak, expected = needs[name]
            part = (rng.randrange(SIZES) + rng.random()) / SIZES
            if n >= SIZES * len(commands):
                part = (i // len(commands) % SIZES + rng.random()) / SIZES
            n_bytes = before + int(part * (peak - before)) + 4096
            arguments = (name, inputs, disk, directory / f"{name}-old", n_bytes, expected)
            problems = []
            try:
                was_full, problems = run_child((_disks.fill, arguments)).result
                full[name] += was_full
            except ChildError as error:
                problems = [str(error)]
            outcome.cases += 1
            outcome.failures += [
                f"case {i}, seed {seed}: {name} on {n_bytes:,} bytes, of {before:,} and {peak:,} "
                f"that it takes: {problem}"
                for problem in problems
            ]
        outcome.figures = {name: f"{count} full" for name, count in full.items()}
    return outcome


def _measure(name: str, inputs: Path, disk: Path, old: Path) -> Any:
    """Make the result that a command replaces, and measure what the command takes."""
    if name in ("quantize", "convert", "to_disk"):
        run_child((tiny_runs.replace, (name, inputs, old, True)))
    measured = run_child((_disks.measure, (name, inputs, disk, old))).result
    if isinstance(measured, str):
        raise unittest.SkipTest(f"no small disk can be mounted: {measured}")
    return measured
