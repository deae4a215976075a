"""Checkpoints, which are complete or absent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from spacy_distil.errors import DistilError
from spacy_distil.runs.digests import check_seal, seal
from spacy_distil.runs.files import atomic_file, explain_write_errors, remove_unfinished


class Checkpoints:
    """The checkpoints of one run, one file each.

    directory: of the files. It need not exist.
    keep: number of the newest checkpoints that stay.
    """

    def __init__(self, directory: Path, *, keep: int) -> None:
        self.directory = directory
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first."""
        return sorted(
            int(path.stem.removeprefix("step-")) for path in self.directory.glob("step-*.pt")
        )

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint; None if there is none."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save the state of the training after `step` steps, and delete the oldest checkpoints.

        If anything interrupts this, the previous checkpoint stays. Call it in one process only.
        """
        # A run that is killed again and again must not fill the disk.
        remove_unfinished(self.directory)
        # Each is as large as the one before.
        needed = max((self._path(old).stat().st_size for old in self.steps()), default=None)
        with atomic_file(self._path(step), needed=needed) as unfinished:
            with unfinished.open("wb") as file:
                torch.save(state, file)  # its own files would not tell why they cannot be written
            seal(unfinished)
        with explain_write_errors(self.directory):
            for old in self.steps()[: -self.keep]:
                self._path(old).unlink()

    def load(self, step: int, device: torch.device) -> dict[str, Any]:
        """Load the state that was saved after `step` steps."""
        path = self._path(step)
        if not path.exists():
            raise DistilError(
                f"there is no checkpoint {path} here: the output directory must be on a disk that "
                f"all machines of a run see"
            )
        try:
            check_seal(path)
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except OSError as error:
            raise DistilError(
                f"the checkpoint {path} cannot be read: {error.strerror or error}. Make it "
                f"readable, or remove it: the run then goes on from the one before it, or from the "
                f"start"
            ) from error
        except Exception as error:  # torch raises many kinds of errors for a damaged file
            raise DistilError(
                f"the checkpoint {path} cannot be read: {error}. Remove it: the run then goes on "
                f"from the one before it, or from the start"
            ) from error
        return state

    def remove(self) -> None:
        """Delete all checkpoints."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}.pt"
