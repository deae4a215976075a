"""Commands that replace a good result are killed, and the result is looked at."""

from __future__ import annotations

import os
import random
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

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
    "A `quantize`, `convert`, `student` or `adapt` that gets SIGKILL while it replaces a good "
    "result leaves the old one or the new one, whole (`adapt --force`, which removes the old run "
    "first, and `student`, which replaces nothing: none or the new one), and so does `nlp.to_disk` "
    "with the folder of the component. The same command then gives the new one, and leaves nothing "
    "else behind."
)
COMMANDS = ("quantize", "convert", "student", "adapt", "to_disk")
SHORT = len(COMMANDS)
# Models that a directory must not hold unless it is whole.
# Without one of these, a directory is no encoder, and says so.
NEEDED = {"config.json", "model.safetensors"}


def run(n: int, seed: int, deadline: Deadline) -> Outcome:
    """Run n cases. See the package."""
    outcome = Outcome()
    with workplace() as directory:
        inputs = directory / "inputs"
        inputs.mkdir()
        run_child((tiny_runs.prepare_encoder, (inputs,)))
        run_child((tiny_runs.prepare_pipeline, (inputs,)))
        commands = [c for c in COMMANDS[:n] if c != "convert" or find_spec("spacy_transformers")]
        if "convert" in commands:
            run_child((tiny_runs.prepare_interop, (inputs,)))
        replacements = {name: _Replacement(name, inputs, directory / name) for name in commands}
        killed = dict.fromkeys(commands, 0)
        for i in range(n):
            if deadline.passed():
                break
            name = commands[i % len(commands)]
            rng = random.Random(f"{seed} {i}")
            moment, was_killed, problems = replacements[name].case(rng)
            outcome.cases += 1
            killed[name] += was_killed
            outcome.failures += [
                f"case {i}, seed {seed}: {name}, killed at {moment}: {problem}"
                for problem in problems
            ]
        outcome.figures = {name: f"{count} killed" for name, count in killed.items()}
    return outcome


class _Replacement:
    """A command over a good result.

    place: a directory for the result, which is the directory `out` in it.
    """

    def __init__(self, name: str, inputs: Path, place: Path) -> None:
        self.name, self.inputs = name, inputs
        self.place, self.output = place, place / "out"
        place.mkdir()
        self.old = place.with_name(f"{name}-old")
        self.result = self.output / "transformer" if name == "to_disk" else self.output
        if name == "student":
            self.old.mkdir()
        else:
            run_child(self.work(old=True))
            shutil.copytree(self.output, self.old)
            self.expected_old = self.found()
        self._put_back()
        self.measure = run_child(self.work(), Counting(place))
        self.expected_old, self.expected = digests_of(self.old, name), self.found()

    def work(self, *, old: bool = False) -> Work:
        """The command. old: as it made the result that is replaced."""
        return tiny_runs.replace, (self.name, self.inputs, self.output, old)

    def found(self) -> dict[str, str]:
        return digests_of(self.output, self.name)

    def _put_back(self) -> None:
        shutil.rmtree(self.place)
        self.place.mkdir()
        if any(self.old.iterdir()):
            shutil.copytree(self.old, self.output)

    def case(self, rng: random.Random) -> tuple[str, bool, list[str]]:
        """RETURNS: the moment of the kill, whether there was one, and what is wrong."""
        self._put_back()
        moment, was_killed, problems = "", False, []
        try:
            moment, was_killed = kill_somewhere(
                self.work(), self.measure, rng, Counting(self.place)
            )
            found = self.found()
            is_whole = found in (self.expected_old, self.expected)
            if not is_whole and (self.name != "adapt" or set(found) >= NEEDED):
                problems.append(
                    f"neither old nor new: {', '.join(differences(found, self.expected)[:5])}"
                )
            long_ago = time.time() - 3600
            for path in self.place.rglob("*"):
                os.utime(path, (long_ago, long_ago))
            if self.name == "student" and found:
                shutil.rmtree(self.output)
            run_child(self.work())
            wrong = differences(self.found(), self.expected)
            if wrong:
                problems.append(f"wrong after the next command: {', '.join(wrong[:5])}")
            left = [str(path) for path in self.place.rglob(f"{UNFINISHED}*")]
            if left:
                problems.append(f"left behind: {', '.join(left)}")
        except ChildError as error:
            problems.append(str(error))
        return moment, was_killed, problems


def digests_of(output: Path, name: str) -> dict[str, str]:
    """Digests of a result: of the whole directory, of a model in a run, or of a component."""
    if name == "to_disk":
        return digests(output / "transformer")
    found = digests(output, leave_out=("cache", "checkpoints"))
    run_files = ("log.jsonl", "distil.json", "distil.cfg")
    return {
        file: digest
        for file, digest in found.items()
        if file not in run_files and not file.startswith(UNFINISHED)
    }
