"""Runs are killed after their first step, or while they fill a cache, and resumed."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from spacy_distil.runs.files import UNFINISHED
from tests import tiny_runs
from tests.campaigns.outcome import Deadline, Outcome
from tests.children import (
    ChildError,
    Work,
    differences,
    digests,
    kill_somewhere,
    workplace,
)
from tests.children import run as run_child
from tests.kills import Counting

PROMISE = (
    "A distillation that gets SIGKILL at any moment, in training or while it fills a cache, and "
    "goes on with --resume ends with the same files, bit for bit, as one that was not killed. "
    "model-best and model-last are whole at any time."
)
SHORT = 6
# Of 19 cases, 10 are encoders, 6 pipelines, 2 caches of teachers and 1 of a corpus.
ORDER = "EPTEPCEPEPEPTEPEEEE"
NAMES = {"E": "encoder", "P": "pipeline", "T": "teacher's cache", "C": "corpus cache"}
# A run is killed once it touches its checkpoints, after the first step; or while it fills a cache,
# in about the first part of its time.
FIRST = {"E": "/checkpoints", "P": "/checkpoints", "T": "/cache/", "C": "/cache/"}
ONLY = {"E": "", "P": "", "T": "/cache/", "C": "/cache/"}
PART = {"E": 1.0, "P": 1.0, "T": 0.3, "C": 0.3}


def run(n: int, seed: int, deadline: Deadline) -> Outcome:
    """Run n cases. See the package."""
    outcome = Outcome()
    with workplace() as directory:
        runs = {
            kind: _Run(kind, directory)
            for kind in "EPTC"
            if kind in {ORDER[i % 19] for i in range(n)}
        }
        killed = dict.fromkeys(NAMES.values(), 0)
        for i in range(n):
            if deadline.passed():
                break
            kind = ORDER[i % len(ORDER)]
            rng = random.Random(f"{seed} {i}")
            moment, was_killed, problems = runs[kind].case(directory / "case", rng)
            outcome.cases += 1
            killed[NAMES[kind]] += was_killed
            outcome.failures += [
                f"case {i}, seed {seed}: {NAMES[kind]}, killed at {moment}: {problem}"
                for problem in problems
            ]
        outcome.figures = {name: f"{count} killed" for name, count in killed.items()}
    return outcome


class _Run:
    """A run of one kind, and its result if nobody kills it."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.inputs = directory / ("encoder" if kind in "EC" else "pipeline")
        if not self.inputs.exists():
            self.inputs.mkdir()
            prepare = tiny_runs.prepare_encoder if kind in "EC" else tiny_runs.prepare_pipeline
            run_child((prepare, (self.inputs,)))
        # The name of a directory is in the config that a pipeline keeps.
        output = directory / "case"
        measure = run_child(self.work(output), self._counting(output))
        self.measure = replace(measure, seconds=measure.seconds * PART[kind])
        self.expected = result_of(output)
        shutil.rmtree(output)

    def work(self, output: Path, *, resume: bool = False) -> Work:
        function = tiny_runs.run_encoder if self.kind in "EC" else tiny_runs.run_pipeline
        return function, (self.inputs, output, {"resume": resume})

    def _counting(self, output: Path) -> Counting:
        return Counting(output, first=FIRST[self.kind], only=ONLY[self.kind])

    def case(self, output: Path, rng: random.Random) -> tuple[str, bool, list[str]]:
        """RETURNS: the moment of the kill, whether there was one, and what is wrong."""
        moment, was_killed, problems = "", False, []
        try:
            moment, was_killed = kill_somewhere(
                self.work(output), self.measure, rng, self._counting(output)
            )
            problems = self._find_parts(output)
            run_child(self.work(output, resume=True))
            wrong = differences(result_of(output), self.expected)
            if wrong:
                problems.append(f"other files than without a kill: {', '.join(wrong[:5])}")
        except ChildError as error:
            problems.append(str(error))
        shutil.rmtree(output, ignore_errors=True)
        return moment, was_killed, problems

    def _find_parts(self, output: Path) -> list[str]:
        """List the directories of pipelines that are not whole."""
        problems = []
        for name in ("model-best", "model-last"):
            expected = {key for key in self.expected if key.startswith(f"{name}/")}
            found = {key for key in digests(output) if key.startswith(f"{name}/")}
            if found and found != expected:
                problems.append(f"{name} was not whole after the kill")
        return problems


def result_of(output: Path) -> dict[str, str]:
    """Digests of a finished run: its files, and its log without times."""
    # Other runs may use the cache, too, so what a killed one has left stays for a while.
    shared = f"cache/{UNFINISHED}"
    found = {
        name: digest
        for name, digest in digests(output, leave_out=("log.jsonl", "distil.json")).items()
        if not name.startswith(shared)
    }
    log = output / "log.jsonl"
    if log.exists():
        for line in map(json.loads, log.read_text().splitlines()):
            line.pop("pieces_per_second", None)
            found[f"log.jsonl, {line['kind']} of step {line['step']}"] = json.dumps(line)
    results: dict[str, Any] = json.loads((output / "distil.json").read_text())
    results.pop("seconds", None)
    return {**found, "distil.json": json.dumps(results)}
