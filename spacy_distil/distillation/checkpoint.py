"""Checkpoints that are there whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

from accelerate import Accelerator


class Checkpoints:
    """The checkpoints of one run: model, optimizer, schedule and random states after a step.

    directory: holds one directory `step-N` each.
    keep: how many of the newest stay.
    """

    def __init__(self, directory: Path, *, keep: int) -> None:
        self.directory = directory
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, oldest first."""
        return sorted(
            int(path.name.removeprefix("step-")) for path in self.directory.glob("step-*")
        )

    def save(self, accelerator: Accelerator, step: int) -> None:
        """Save under another name, then rename: a kill in between leaves the last one in place."""
        unfinished = self.directory / f".unfinished-{step}"
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        accelerator.wait_for_everyone()
        # Not as safetensors: those warn of the decoder that is tied to the embeddings every time.
        accelerator.save_state(str(unfinished), safe_serialization=False)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            unfinished.rename(self._path(step))
            for old in self.steps()[: -self.keep]:
                shutil.rmtree(self._path(old))
        accelerator.wait_for_everyone()

    def load(self, accelerator: Accelerator, step: int) -> None:
        """Put everything back as it was after `step`."""
        accelerator.load_state(str(self._path(step)))

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"
