"""The log and the display of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]
from wasabi import row

from spacy_distil.distillation.encoder.evaluation import scores_by_language
from spacy_distil.errors import DistilError
from spacy_distil.runs.files import explain_write_errors, write_text

ACCURACIES = ("student_accuracy", "teacher_accuracy")


class RunLog:
    """`log.jsonl`: one JSON object per line, each with "step" and "kind"."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def forget_after(self, step: int) -> dict[int, dict[str, float]]:
        """Drop the entries after the checkpoint that a run is resumed from.

        RETURNS: the held-out scores that stay, by step.
        """
        if not self.path.exists():
            return {}
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            # A kill may have cut the last line short.
            complete = [line for line in lines if line.endswith("\n")]
            records = [(json.loads(line), line) for line in complete]
            kept = [(record, line) for record, line in records if record["step"] <= step]
            held_out = [record for record, _ in kept if record.pop("kind") == "held_out"]
            scores = {record.pop("step"): record for record in held_out}
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DistilError(
                f"{self.path} is damaged: a line is no record ({error!r}). Delete the file, and go "
                "on with --resume: the log then begins at the checkpoint"
            ) from error
        write_text(self.path, "".join(line for _, line in kept))
        return scores

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Append an entry. kind: "train" or "held_out"."""
        with explain_write_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")


class Display:
    """A table with a row per held-out evaluation, and the training losses: in a progress bar on a
    terminal, otherwise in lines of text.

    objectives: names of the columns.
    total, start: steps of the run, and steps taken before.
    shown: whether to show anything. Only one of several processes should.
    """

    def __init__(self, objectives: Sequence[str], *, total: int, start: int, shown: bool) -> None:
        self.objectives = objectives
        self.shown = shown
        self.total, self.start, self.started = total, start, time.monotonic()
        # `disable=None` shows the bar on terminals only.
        self.bar = tqdm(
            total=total, initial=start, unit="step", leave=False, disable=None if shown else True
        )
        columns = ("step", "epoch", "pieces/s", "loss", *objectives, "total", "acc", "teacher acc")
        self.widths = [max(8, len(column)) for column in columns]
        self._line(columns)
        self._line(["-" * width for width in self.widths])

    def advance(self) -> None:
        """Count one step."""
        self.bar.update()

    def losses(
        self, step: int, means: Mapping[str, float], *, speed: float, learn_rate: float
    ) -> None:
        """Show the mean training losses of the last few steps.

        step: number of steps taken.
        speed: in pieces per second.
        learn_rate: of the last step.
        """
        text = " ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        text += f", {speed:,.0f} pieces/s"
        self.bar.set_postfix_str(text)
        if self.shown and self.bar.disable:
            # Evaluations are part of the time that a step takes.
            per_step = (time.monotonic() - self.started) / (step - self.start)
            left = tqdm.format_interval(per_step * (self.total - step))
            print(
                f"Step {step} of {self.total}: {text}, learn rate {learn_rate:.2g}, {left} left",
                flush=True,
            )

    def scores(
        self,
        step: int,
        epoch: float,
        speed: float | None,
        loss: float | None,
        scores: Mapping[str, float],
    ) -> None:
        """Add a row to the table, and below it the total of each language if there are several.

        epoch: how often the run has gone through the corpus.
        speed: in pieces per second; `None` at the start of a run.
        loss: weighted training loss; `None` at the start of a run.
        scores: see `evaluation.evaluate`.
        """
        cells = [str(step), f"{epoch:.2f}"]
        cells += ["" if speed is None else f"{speed:,.0f}", "" if loss is None else f"{loss:.4f}"]
        cells += [f"{scores[name]:.4f}" for name in (*self.objectives, "total")]
        cells += [f"{100 * scores[a]:.2f}" if a in scores else "-" for a in ACCURACIES]
        self._line(cells)
        languages = [(name, own) for name, own in scores_by_language(scores).items() if name]
        if languages and self.shown:
            totals = ", ".join(f"{name} {own['total']:.4f}" for name, own in languages)
            self.bar.write(f"Total by language: {totals}")

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()

    def _line(self, cells: Sequence[str]) -> None:
        if self.shown:
            self.bar.write(row(cells, widths=self.widths, aligns=["r"] * len(cells)))
