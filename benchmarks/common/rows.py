"""A teacher of one pipe, its students, and their int8: trained by the commands that users run."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wasabi import msg

ROWS = ("teacher", "copied", "taught", "int8")


@dataclass(frozen=True)
class Plan:
    """The trainings of a benchmark.

    pipe: factory of the pipe.
    train, dev: files that the reader of its config reads.
    encoder: directory or hub name of the teacher's encoder.
    layers: of the student.
    words: in a batch. spaCy counts the words of docs, and no further texts.
    teacher_steps, student_steps: of training.
    output: directory of the pipelines. It keeps the ones that it has.
    settings: more options of the teacher's and the student's config.
    """

    pipe: str
    train: Path
    dev: Path
    encoder: str
    layers: int
    words: int
    teacher_steps: int
    student_steps: int
    output: Path
    settings: tuple[str, ...] = ()

    @property
    def paths(self) -> list[str]:
        """Options of the files."""
        return ["--paths.train", str(self.train), "--paths.dev", str(self.dev)]

    def schedule(self, steps: int) -> list[str]:
        """Options of a training."""
        options = {
            "training.max_steps": steps,
            "training.patience": 0,
            "training.eval_frequency": max(1, steps // 8),
            "training.batcher.size": self.words,
            "training.optimizer.learn_rate.warmup_steps": steps // 10,
        }
        return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def make_rows(plan: Plan) -> dict[str, Path]:
    """Train a teacher, two students with its lowest layers, and an int8 one.

    RETURNS: pipelines by row: the teacher; "copied", which learns from annotation alone; "taught",
        which learns the teacher's soft targets on the same texts; and "int8", the latter quantized.
    """
    root = plan.output
    root.mkdir(parents=True, exist_ok=True)
    teacher = root / "teacher" / "model-best"
    if not teacher.exists():
        _spacy(
            *("distil", "init-config", "train", root / "teacher.cfg", "--lang", "en", "--cpu"),
            *("--pipeline", plan.pipe, "--encoder", plan.encoder, "--force"),
        )
        _spacy(
            *("train", root / "teacher.cfg", "--output", root / "teacher"),
            *(*plan.paths, *plan.schedule(plan.teacher_steps), *plan.settings),
        )
    rows = {"teacher": teacher}
    config = root / "student.cfg"
    if not config.exists():
        _spacy("distil", "init-config", "pipeline", config, "--teacher", teacher, "--cpu")
    for row, target in (("copied", "gold"), ("taught", "soft")):
        rows[row] = root / row / "model-best"
        if not rows[row].exists():
            _spacy(
                *("distil", "pipeline", teacher, config, "--output", root / row, "--force"),
                *(*plan.paths, *plan.schedule(plan.student_steps), *plan.settings),
                *("--distillation.corpus", "null", "--distillation.student.n_layers", plan.layers),
                *(f"--distillation.pipes.{plan.pipe}.target", target),
            )
    rows["int8"] = root / "int8"
    if not rows["int8"].exists():
        _spacy("distil", "quantize", rows["taught"], rows["int8"])
    return rows


def _spacy(*parts: object) -> None:
    """Run a command of spaCy. Raises CalledProcessError if it fails."""
    words: Sequence[str] = list(map(str, parts))
    msg.info(f"python -m spacy {shlex.join(words)}")
    subprocess.run([sys.executable, "-m", "spacy", *words], check=True)
