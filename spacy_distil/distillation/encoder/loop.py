"""The training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from spacy_distil.distillation.encoder.checkpoint import Checkpoints
from spacy_distil.distillation.encoder.config import TrainingSettings
from spacy_distil.distillation.encoder.corpus import Corpus
from spacy_distil.distillation.encoder.distiller import Distiller
from spacy_distil.distillation.encoder.divergence import Divergence
from spacy_distil.distillation.encoder.evaluation import evaluate
from spacy_distil.distillation.encoder.objectives import Loss
from spacy_distil.distillation.encoder.processes import on_main
from spacy_distil.distillation.encoder.progress import Display, RunLog
from spacy_distil.distillation.encoder.steps import (
    Stage,
    StepBatches,
    StepBlocks,
    held_out_batches,
    prefetch,
)
from spacy_distil.errors import DistilError
from spacy_distil.runs.interruption import Interruption, RunInterrupted
from spacy_distil.students.masking import Masking, seed_for


@dataclass
class Meter:
    """Training losses since the last look, summed on the device: reading them makes the CPU wait.

    names: of all objectives.
    sums: (objectives,) float32. positions: (objectives,), how many these are sums of.
    """

    names: list[str]
    sums: Tensor
    positions: np.ndarray = field(init=False)
    pieces: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.positions = np.zeros(len(self.names))

    def add(self, losses: Mapping[str, Loss]) -> None:
        for name, loss in losses.items():
            place = self.names.index(name)
            self.sums[place] += loss.sum.detach()
            self.positions[place] += loss.positions

    def state(self, accelerator: Accelerator) -> list[list[float]]:
        """Sums and positions of all processes, for a checkpoint."""
        counted = torch.tensor(self.positions, dtype=torch.float32, device=self.sums.device)
        state: list[list[float]] = accelerator.reduce(torch.stack([self.sums, counted])).tolist()
        return state

    def restore(self, state: list[list[float]]) -> None:
        """Go on with what `state` returned. One process does so for all."""
        self.sums.copy_(torch.tensor(state[0]))
        self.positions[:] = state[1]

    def read(self, accelerator: Accelerator) -> tuple[dict[str, float], float]:
        """Mean losses of those that were computed, and pieces per second, of all processes; starts
        anew.
        """
        started = time.perf_counter()
        sums, positions = self.state(accelerator)
        means = {
            name: value / count
            for name, value, count in zip(self.names, sums, positions, strict=True)
            if count
        }
        self.seconds += time.perf_counter() - started  # the wait for the device is its work
        speed = self.pieces / self.seconds
        self.sums.zero_()
        self.positions[:] = 0
        self.pieces, self.seconds = 0, 0.0
        return means, speed


@dataclass
class Trainer:
    """Trains the student of a distiller, step by step.

    distiller: on the accelerator's device.
    masking: likewise.
    wrapped: the same module for mixed precision and several processes.
    clip: norm that the gradient of a step is clipped to.
    """

    distiller: Distiller
    wrapped: torch.nn.Module
    optimizer: torch.optim.Optimizer
    masking: Masking
    accelerator: Accelerator
    clip: float

    @classmethod
    def prepare(
        cls,
        distiller: Distiller,
        settings: TrainingSettings,
        masking: Masking,
        accelerator: Accelerator,
    ) -> Trainer:
        if settings.compile:
            distiller.compile_encoders()
        optimizer = make_optimizer(distiller, settings, accelerator.device)
        wrapped, prepared = accelerator.prepare(distiller, optimizer)
        device = accelerator.device
        return cls(distiller, wrapped, prepared, masking.to(device), accelerator, settings.clip)

    def step(
        self, step: int, rows: StepBatches, stage: Stage, meter: Meter | None = None
    ) -> Tensor:
        """One optimizer step. The CPU does not wait for the device, but where transformers looks
        into a mask: version 5 in the batch with the corpus's last, shorter block, version 4 in
        every forward pass of most families.

        step: the number of steps taken before.
        Returns the norm of the gradient before clipping, a scalar.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = stage.rate(step)
        for place, portion in enumerate(rows.micro_batches):
            batch = self.masking(portion.to(self.accelerator.device))
            # Processes add up their gradients in the last backward pass alone.
            last = place == len(rows.micro_batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                losses: dict[str, Loss] = self.wrapped(batch, step, stage.objectives)
                self.accelerator.backward(self._total(losses, rows, step))
            if meter is not None:
                meter.add(losses)
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _total(self, losses: Mapping[str, Loss], rows: StepBatches, step: int) -> Tensor:
        """The portion's share of the mean over the whole step. Several processes average their
        gradients, so that each has to count as many times.
        """
        means = {}
        for name, loss in losses.items():
            positions = rows.positions(masked=self.distiller.objective(name).needs.masking)
            means[name] = loss.sum / positions * self.accelerator.num_processes
        return self.distiller.total(means, step)


def train(
    trainer: Trainer,
    corpus: Corpus,
    blocks: StepBlocks,
    stages: list[Stage],
    settings: TrainingSettings,
    *,
    checkpoints: Checkpoints,
    output: Path,
    describe: Callable[[int], str],
) -> dict[str, float]:
    """Train the distiller's student in place, from the newest checkpoint if there is any.

    output: directory of the log.
    describe: says what a block of the corpus is, by its number.
    Returns the last held-out scores, see `evaluation.evaluate`; empty where nothing is held out.
    Raises `RunInterrupted` after SIGTERM and `DistilError` where training diverges.
    """
    distiller, accelerator = trainer.distiller, trainer.accelerator
    main = accelerator.is_main_process
    n_steps = stages[-1].end
    names = list(distiller.objectives)
    log = RunLog(output / "log.jsonl")
    divergence = Divergence(accelerator.device)
    meter = Meter(names, torch.zeros(len(names), device=accelerator.device))
    start = on_main(accelerator, lambda: max(checkpoints.steps(), default=0))
    if start:
        # To the CPU: the device need not have room for it twice.
        state = checkpoints.load(start, torch.device("cpu"))
        distiller.load_state_dict(state["distiller"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        divergence.at_first.update(state["losses_at_first"])
        if main:
            meter.restore(state["losses"])
        del state
    logged = on_main(accelerator, lambda: log.forget_after(start))

    scores: dict[str, float] = {}
    latest: dict[str, float] = {}  # training losses
    speed: float | None = None
    saved = start

    def stage_of(step: int) -> Stage:
        """The stage that ends with a step, or that it is in the middle of."""
        return next(stage for stage in stages if step <= stage.end)

    def evaluate_after(step: int) -> dict[str, float]:
        rows = held_out_batches(
            corpus.held_out,
            size=blocks.micro_batch,
            masking=trainer.masking,
            pad_id=blocks.pad_id,
            process=blocks.process,
            n_processes=blocks.n_processes,
        )
        batches = (trainer.masking(r.to(accelerator.device), "held out") for r in rows)
        summed = stage_of(step).objectives
        scores = evaluate(distiller, batches, accelerator, summed, step=max(0, step - 1))
        if main and step not in logged:
            epoch = blocks.starts[step] / len(corpus.train)
            display.scores(step, epoch, speed, latest.get("total"), scores)
            log.write(step, "held_out", scores)
            accelerator.log({f"held_out/{k}": v for k, v in scores.items()}, step=step)
        return scores

    def evaluates(step: int) -> bool:
        return len(corpus.held_out) > 0 and (step % settings.eval_frequency == 0 or step == n_steps)

    def save_after(step: int) -> None:
        nonlocal saved
        check(step)
        state = {
            "distiller": distiller.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "losses_at_first": divergence.at_first,
            "losses": meter.state(accelerator),  # since the log was last written
        }
        on_main(accelerator, lambda: checkpoints.save(step, state))
        saved = step

    def check(step: int, stage: Stage | None = None) -> None:
        """Stop where training has diverged: nothing that came of it is saved."""
        bad = divergence.bad_step()
        losses = {name: latest[name] for name in names if name in latest}
        worse = divergence.worse(stage.name, losses) if stage and bad is None else None
        if bad is None and worse is None:
            return
        what = f"the gradient of step {bad} is not finite"
        if worse is not None:
            what = f"the loss {worse!r} has risen to {latest[worse]:.4g} by step {step}"
        rows = blocks.rows((bad or step) - 1)
        shown = {
            n: v if math.isfinite(v) else str(v) for n, v in latest.items()
        }  # as JSON has them
        found = {"step": bad or step, "losses": shown, "blocks": rows}
        if main:
            (output / "diverged.json").write_text(json.dumps(found, indent=2) + "\n")
        kept = f"The checkpoint of step {saved} is kept" if saved else "There is no checkpoint yet"
        raise DistilError(
            f"{what}: training has diverged. {kept}. The blocks of that step are listed in "
            f"{output / 'diverged.json'}; the first begins {describe(rows[0])!r}. Start again with "
            f"a lower training.learn_rate, a longer training.warmup or "
            f'training.mixed_precision = "no"'
        )

    display = Display(names, total=n_steps, start=start, shown=main)
    work = prefetch(blocks.__getitem__, range(start, n_steps))
    with closing(display), closing(work), Interruption() as interruption:
        distiller.train()
        # A run that was ended after a checkpoint has not evaluated it; one that was killed after
        # its last step has, but not returned the scores.
        if evaluates(start) and (start in (0, n_steps) or start not in logged):
            scores = evaluate_after(start)
        for before in range(start, n_steps):
            step = before + 1
            stage = stage_of(step)
            started = time.perf_counter()
            # Dropout is a function of seed, step and process too.
            torch.manual_seed(seed_for(settings.seed, before, blocks.process))
            rows = next(work)
            divergence.note(step, trainer.step(before, rows, stage, meter))
            meter.pieces += rows.n_real
            meter.seconds += time.perf_counter() - started
            display.advance()
            logs = step % settings.log_frequency == 0 or step == stage.end
            if logs:
                means, speed = meter.read(accelerator)
                latest = dict(means)
                weighted = {name: torch.tensor(mean) for name, mean in means.items()}
                latest["total"] = float(distiller.total(weighted, before))
                check(step, stage)
                display.losses(latest, speed=speed)
                if main:
                    record = {**latest, "learn_rate": stage.rate(before)}
                    shown = {**record, "stage": stage.name, "pieces_per_second": speed}
                    log.write(step, "train", shown)
                    accelerator.log({f"train/{k}": v for k, v in record.items()}, step=step)
            # Before the evaluation, which may take longer than there is time after SIGTERM.
            if step % settings.checkpoint_frequency == 0 or step == n_steps:
                save_after(step)
            if _asked_to_end(interruption, accelerator, agree=logs) and step < n_steps:
                if saved < step:
                    save_after(step)
                raise RunInterrupted(
                    f"stopped by SIGTERM after step {step} of {n_steps}, and saved a checkpoint. "
                    f"Go on with --resume"
                )
            if evaluates(step):
                scores = evaluate_after(step)
    return scores


def _asked_to_end(interruption: Interruption, accelerator: Accelerator, *, agree: bool) -> bool:
    """Whether SIGTERM came to any process. Several have to agree. On GPUs they do so when losses
    are read, which makes them wait for each other anyway.
    """
    if accelerator.num_processes == 1:
        return interruption.received
    if not agree and accelerator.device.type != "cpu":
        return False
    flag = torch.tensor(float(interruption.received), device=accelerator.device)
    return bool(accelerator.reduce(flag) > 0)


def make_optimizer(
    distiller: torch.nn.Module, settings: TrainingSettings, device: torch.device
) -> torch.optim.AdamW:
    """AdamW, fused where torch has it; biases and layer norms, the vectors, do not decay."""
    parameters = [p for p in distiller.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=settings.learn_rate, betas=(0.9, 0.98), fused=fused)
