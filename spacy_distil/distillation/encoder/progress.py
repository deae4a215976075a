"""The log and the display of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]
from wasabi import row

from spacy_distil.errors import DistilError
from spacy_distil.runs.files import write_text

ACCURACIES = ("student_accuracy", "teacher_accuracy")


class RunLog:
    """`log.jsonl`: one JSON object per line, each with "step" and "kind"."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def forget_after(self, step: int) -> set[int]:
        """Drop the entries after the checkpoint that a run is resumed from.

        RETURNS: steps whose held-out scores stay.
        """
        if not self.path.exists():
            return set()
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            # A kill may have cut the last line short.
            complete = [line for line in lines if line.endswith("\n")]
            records = [(json.loads(line), line) for line in complete]
            kept = [(record, line) for record, line in records if record["step"] <= step]
            held_out = {record["step"] for record, _ in kept if record["kind"] == "held_out"}
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DistilError(
                f"{self.path} is damaged: a line is no record ({error!r}). Delete the file, and go "
                "on with --resume: the log then begins at the checkpoint"
            ) from error
        write_text(self.path, "".join(line for _, line in kept))
        return held_out

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Append an entry. kind: "train" or "held_out"."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        except OSError as error:
            raise DistilError(
                f"{self.path} cannot be written: {error.strerror}. Checkpoints are kept: free some "
                f"space and go on with --resume"
            ) from error


class Display:
    """A progress bar on a terminal, and a table with a row per held-out evaluation.

    objectives: names of the columns.
    total, start: steps of the run, and steps taken before.
    shown: whether to show anything. Only one of several processes should.
    """

    def __init__(self, objectives: Sequence[str], *, total: int, start: int, shown: bool) -> None:
        self.objectives = objectives
        self.shown = shown
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

    def losses(self, means: Mapping[str, float], *, speed: float) -> None:
        """Show the mean training losses of the last few steps. speed: in pieces per second."""
        text = " ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        self.bar.set_postfix_str(f"{text}, {speed:,.0f} pieces/s")

    def scores(
        self,
        step: int,
        epoch: float,
        speed: float | None,
        loss: float | None,
        scores: Mapping[str, float],
    ) -> None:
        """Add a row to the table.

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

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()

    def _line(self, cells: Sequence[str]) -> None:
        if self.shown:
            self.bar.write(row(cells, widths=self.widths, aligns=["r"] * len(cells)))
