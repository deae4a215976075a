"""Checkpoints that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from spacy_distil.errors import DistilError
from spacy_distil.runs.files import atomic_file, remove_unfinished


class Checkpoints:
    """The checkpoints of one run, a file each: whatever changes from step to step.

    directory: where they are.
    keep: how many of the newest stay.
    """

    def __init__(self, directory: Path, *, keep: int) -> None:
        self.directory = directory
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, oldest first."""
        return sorted(
            int(path.stem.removeprefix("step-")) for path in self.directory.glob("step-*.pt")
        )

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save what training is after `step` steps, and drop the oldest of those that there are.

        It is written under another name, flushed and renamed: whatever interrupts that, the one
        before it stays. One process does it for all.
        """
        # A run that is killed again and again must not fill the disk.
        remove_unfinished(self.directory)
        try:
            with atomic_file(self._path(step)) as unfinished, unfinished.open("wb") as file:
                torch.save(state, file)
            for old in self.steps()[: -self.keep]:
                self._path(old).unlink()
        except (OSError, RuntimeError) as error:  # torch's own of a write that came to nothing
            raise DistilError(self._cannot_write(step, error)) from error

    def load(self, step: int, device: torch.device) -> dict[str, Any]:
        """What was saved after `step` steps."""
        path = self._path(step)
        if not path.exists():
            raise DistilError(
                f"there is no checkpoint {path} here: the output directory must be on a disk that "
                f"all machines of a run see"
            )
        try:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # torch has many words for a damaged file
            raise DistilError(
                f"the checkpoint {path} cannot be read: {error}. Remove it: the run then goes on "
                f"from the one before it, or from the start"
            ) from error
        return state

    def _cannot_write(self, step: int, error: Exception) -> str:
        reason = getattr(error, "strerror", None) or error
        kept = self.steps()
        there = (
            f"The checkpoint of step {kept[-1]} is kept: free some space and go on from it with "
            f"--resume"
            if kept
            else "Free some space and start again"
        )
        where = f"the checkpoint of step {step} cannot be written to {self.directory}"
        return f"{where}: {reason}. {there}"

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}.pt"
