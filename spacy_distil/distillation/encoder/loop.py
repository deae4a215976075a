"""The training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import torch

from spacy_distil.distillation.encoder.checkpoint import Checkpoints
from spacy_distil.distillation.encoder.config import TrainingSettings
from spacy_distil.distillation.encoder.corpus import Corpus
from spacy_distil.distillation.encoder.divergence import Divergence
from spacy_distil.distillation.encoder.evaluation import evaluate, scores_by_language
from spacy_distil.distillation.encoder.meter import Meter
from spacy_distil.distillation.encoder.processes import on_main
from spacy_distil.distillation.encoder.progress import Display, RunLog
from spacy_distil.distillation.encoder.steps import (
    EncoderStage,
    StepBatches,
    StepBlocks,
    held_out_batches,
    prefetch,
)
from spacy_distil.distillation.encoder.trainer import Trainer
from spacy_distil.errors import DistilError
from spacy_distil.runs.files import write_text
from spacy_distil.runs.interruption import Interruption, RunInterrupted
from spacy_distil.students.masking import MaskedBatch, seed_for


class TrainingLoop:
    """Trains the student of a trainer's distiller in place, step after step.

    output: directory of the log.
    describe: returns the beginning of a block of the corpus as text, given its number.
    """

    def __init__(
        self,
        trainer: Trainer,
        corpus: Corpus,
        blocks: StepBlocks,
        stages: list[EncoderStage],
        settings: TrainingSettings,
        *,
        checkpoints: Checkpoints,
        output: Path,
        describe: Callable[[int], str],
    ) -> None:
        self.trainer = trainer
        self.distiller = trainer.distiller
        self.accelerator = trainer.accelerator
        self.is_main = self.accelerator.is_main_process
        self.corpus = corpus
        self.blocks = blocks
        self.stages = stages
        self.n_steps = stages[-1].end
        self.settings = settings
        self.checkpoints = checkpoints
        self.output = output
        self.describe = describe
        self.log = RunLog(output / "log.jsonl")
        self.divergence = Divergence(self.accelerator.device)
        self.meter = Meter(list(self.distiller.objectives), self.accelerator.device)
        # Number of steps taken, and the same at the newest checkpoint.
        self.step = self.saved_step = 0
        # Mean training losses at the last log entry, their weighted sum as "total", and the speed.
        self.losses: dict[str, float] = {}
        self.speed: float | None = None
        # The newest held-out scores, and all that are in the log, by step.
        self.scores: dict[str, float] = {}
        self.logged_scores: dict[int, dict[str, float]] = {}

    def run(self) -> dict[str, float]:
        """Train to the last step, from the newest checkpoint if there is one.

        RETURNS: the last held-out scores, see `evaluation.evaluate`; empty if nothing is held out.
        Raises `RunInterrupted` after SIGTERM, and `DistilError` if training diverges.
        """
        self.restore()
        self.display = Display(
            self.meter.names, total=self.n_steps, start=self.step, shown=self.is_main
        )
        batches = prefetch(self.blocks.__getitem__, range(self.step, self.n_steps))
        with closing(self.display), closing(batches), Interruption() as interruption:
            self.distiller.train()
            # A run that stopped at a checkpoint has no scores of that step. A run that was killed
            # after its last step has logged them, but not returned them.
            needs_scores = self.step in (0, self.n_steps) or self.step not in self.logged_scores
            if self.evaluates and needs_scores:
                self.evaluate()
            while self.step < self.n_steps:
                self.take_step(batches)
                logs = self.step % self.settings.log_frequency == 0 or self.step == self.stage.end
                if logs:
                    self.log_losses()
                # Before the evaluation, which may take longer than SIGTERM leaves time for.
                if self.is_due(self.settings.checkpoint_frequency):
                    self.save_checkpoint()
                if self.is_asked_to_stop(interruption, agree=logs) and self.step < self.n_steps:
                    self.stop()
                if self.evaluates:
                    self.evaluate()
        return self.scores

    @property
    def stage(self) -> EncoderStage:
        """The stage of the step that was taken last."""
        return next(stage for stage in self.stages if self.step <= stage.end)

    @property
    def evaluates(self) -> bool:
        """Whether held-out scores are due."""
        return len(self.corpus.held_out) > 0 and self.is_due(self.settings.eval_frequency)

    def is_due(self, frequency: int) -> bool:
        """Whether something is due that happens every `frequency` steps, and after the last."""
        return self.step % frequency == 0 or self.step == self.n_steps

    def restore(self) -> None:
        """Load the newest checkpoint, if there is one, and drop later entries of the log."""
        self.step = on_main(self.accelerator, lambda: max(self.checkpoints.steps(), default=0))
        self.saved_step = self.step
        if self.step:
            # On the CPU: the device may not have room for two copies.
            state = self.checkpoints.load(self.step, torch.device("cpu"))
            self.distiller.load_state_dict(state["distiller"])
            self.trainer.optimizer.load_state_dict(state["optimizer"])
            self.divergence.first_losses.update(state["losses_at_first"])
            if self.is_main:
                self.meter.restore(state["losses"])
        self.logged_scores = on_main(self.accelerator, lambda: self.log.forget_after(self.step))

    def take_step(self, batches: Iterator[StepBatches]) -> None:
        """Take one optimizer step, on the next batches."""
        started = time.perf_counter()
        before, self.step = self.step, self.step + 1
        # Dropout depends on the seed, the step and the process only.
        torch.manual_seed(seed_for(self.settings.seed, before, self.blocks.process))
        step_batches = next(batches)
        norm = self.trainer.step(before, step_batches, self.stage, self.meter)
        self.divergence.note(self.step, norm)
        self.meter.pieces += step_batches.n_real
        self.meter.seconds += time.perf_counter() - started
        self.display.advance()

    def log_losses(self) -> None:
        """Read the training losses, check them, show them and log them."""
        before = self.step - 1
        means, self.speed = self.meter.read(self.accelerator)
        total = self.distiller.total({n: torch.tensor(mean) for n, mean in means.items()}, before)
        self.losses = {**means, "total": float(total)}
        self.check_gradients()
        self.check_losses(means)
        rate = self.stage.rate(before)
        self.display.losses(self.step, self.losses, speed=self.speed, learn_rate=rate)
        if self.is_main:
            values = {**self.losses, "learn_rate": rate}
            entry = {**values, "stage": self.stage.name, "pieces_per_second": self.speed}
            self.log.write(self.step, "train", entry)
            self.accelerator.log({f"train/{k}": v for k, v in values.items()}, step=self.step)

    def evaluate(self) -> None:
        """Score the held-out blocks. Show and log the scores, unless an earlier run has done so."""
        self.scores = evaluate(
            self.distiller,
            {language: self.held_out(language) for language in self.corpus.held_out.languages},
            self.accelerator,
            self.stage.objectives,
            step=max(0, self.step - 1),
        )
        if self.is_main and self.step not in self.logged_scores:
            self.logged_scores[self.step] = self.scores
            epoch = self.blocks.starts[self.step] / self.corpus.train.epoch_length
            self.display.scores(self.step, epoch, self.speed, self.losses.get("total"), self.scores)
            self.log.write(self.step, "held_out", self.scores)
            self.accelerator.log(
                {f"held_out/{k}": v for k, v in self.scores.items()}, step=self.step
            )

    def held_out(self, language: str) -> Iterator[MaskedBatch]:
        """Mask and yield this process's held-out batches of a language."""
        masking, device = self.trainer.masking, self.accelerator.device
        batches = held_out_batches(
            self.corpus.held_out.languages[language],
            size=self.blocks.micro_batch,
            masking=masking,
            pad_id=self.blocks.pad_id,
            process=self.blocks.process,
            n_processes=self.blocks.n_processes,
        )
        # The masks of a language do not depend on which other languages there are.
        kind = f"held out {language}".rstrip()
        return (masking(batch.to(device), kind) for batch in batches)

    def rises(self) -> dict[str, tuple[float, float]]:
        """Compare the held-out totals of the last stage's objectives with those of the start.

        RETURNS (start, end): the totals by language, where the student is no better than at its
            start. Under "" is the total over all languages. Empty if the weights of all objectives
            have fallen to 0, which makes every total 0.
        """
        start, end = self.logged_scores.get(0), self.scores
        if start is None or not end:
            return {}
        names, last = self.stages[-1].objectives, self.n_steps - 1
        if not any(self.distiller.objective(name).weight.at(last) for name in names):
            return {}

        def total(scores: Mapping[str, float]) -> float:
            summed = {name: torch.tensor(scores[name]) for name in names}
            return float(self.distiller.total(summed, last))

        before, after = scores_by_language(start), scores_by_language(end)
        totals = {language: (total(before[language]), total(after[language])) for language in after}
        return {language: both for language, both in totals.items() if not both[1] < both[0]}

    def save_checkpoint(self) -> None:
        """Save the state of the training after this step, unless it has diverged."""
        self.check_gradients()
        state = {
            "distiller": self.distiller.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
            "losses_at_first": self.divergence.first_losses,
            "losses": self.meter.state(self.accelerator),  # since the last log entry
        }
        on_main(self.accelerator, lambda: self.checkpoints.save(self.step, state))
        self.saved_step = self.step

    def is_asked_to_stop(self, interruption: Interruption, *, agree: bool) -> bool:
        """Whether any process has received SIGTERM.

        Several processes have to agree. On GPUs they do so only when they read losses (`agree`),
        which makes them wait for each other anyway.
        """
        accelerator = self.accelerator
        if accelerator.num_processes == 1:
            return interruption.received
        if not agree and accelerator.device.type != "cpu":
            return False
        flag = torch.tensor(float(interruption.received), device=accelerator.device)
        return bool(accelerator.reduce(flag) > 0)

    def stop(self) -> None:
        """Save a checkpoint, if this step has none, and raise `RunInterrupted`."""
        if self.saved_step < self.step:
            self.save_checkpoint()
        raise RunInterrupted.after(self.step, self.n_steps)

    def check_gradients(self) -> None:
        """Raise `DistilError` if the gradient of any step so far was not finite."""
        step = self.divergence.bad_step()
        if step is not None:
            self._give_up(step, f"the gradient of step {step} is not finite")

    def check_losses(self, means: Mapping[str, float]) -> None:
        """Raise `DistilError` if a loss has risen far above its first value in this stage."""
        name = self.divergence.risen_loss(self.stage.name, means)
        if name is not None:
            self._give_up(
                self.step, f"the loss {name!r} has risen to {means[name]:.4g} by step {self.step}"
            )

    def _give_up(self, step: int, problem: str) -> NoReturn:
        """Write the blocks of the bad step to a file and raise `DistilError`."""
        path = self.output / "diverged.json"
        blocks = self.blocks.block_numbers(step - 1)
        # JSON has no numbers that are not finite.
        losses = {n: v if math.isfinite(v) else str(v) for n, v in self.losses.items()}
        if self.is_main:
            report = {"step": step, "losses": losses, "blocks": blocks}
            write_text(path, json.dumps(report, indent=2) + "\n")
        kept = "There is no checkpoint yet"
        if self.saved_step:
            kept = f"The checkpoint of step {self.saved_step} is kept"
        raise DistilError(
            f"{problem}: training has diverged. {kept}. The blocks of that step are listed in "
            f"{path}; the first begins {self.describe(blocks[0])!r}. Start again with a lower "
            f'training.learn_rate, a longer training.warmup or training.mixed_precision = "no"'
        )
