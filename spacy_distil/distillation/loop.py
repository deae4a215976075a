"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from spacy_distil.distillation.batches import Batch, Masking, TrainingBatches, held_out_batches
from spacy_distil.distillation.checkpoint import Checkpoints
from spacy_distil.distillation.config import DistilConfig, TrainingSettings
from spacy_distil.distillation.corpus import Blocks, Corpus
from spacy_distil.distillation.distiller import Distiller
from spacy_distil.distillation.evaluation import evaluate
from spacy_distil.distillation.progress import Display, RunLog
from spacy_distil.errors import DistilError


@dataclass
class Meter:
    """Training losses since the last look, summed on the device: reading them makes the CPU wait.

    sums: (objectives,) float32.
    """

    sums: Tensor
    batches: int = 0
    pieces: int = 0
    seconds: float = 0.0

    def add(self, means: dict[str, Tensor], pieces: int) -> None:
        self.sums += torch.stack([mean.detach().float() for mean in means.values()])
        self.batches += 1
        self.pieces += pieces

    def read(self) -> tuple[list[float], float]:
        """Mean losses and pieces per second; starts anew."""
        started = time.perf_counter()
        means = (self.sums / self.batches).tolist()
        self.seconds += time.perf_counter() - started  # the wait for the device is its work
        speed = self.pieces / self.seconds
        self.sums.zero_()
        self.batches, self.pieces, self.seconds = 0, 0, 0.0
        return means, speed


def count_steps(settings: TrainingSettings, blocks: Blocks, accelerator: Accelerator) -> int:
    """Optimizer steps of the whole run."""
    limits = []
    if settings.epochs is not None:
        limits.append(
            math.ceil(settings.epochs * len(blocks) / _blocks_a_step(settings, accelerator))
        )
    if settings.max_steps is not None:
        limits.append(settings.max_steps)
    return min(limits)


def train(
    distiller: Distiller,
    corpus: Corpus,
    config: DistilConfig,
    *,
    masking: Masking,
    pad_id: int,
    accelerator: Accelerator,
    output: Path,
) -> dict[str, float]:
    """Train the distiller's student in place, from the newest checkpoint in `output` if any.

    Returns the last held-out scores, see `evaluation.evaluate`; empty where nothing is held out.
    """
    settings = config.training
    total = count_steps(settings, corpus.train, accelerator)
    torch.manual_seed(settings.seed)
    optimizer = make_optimizer(distiller.student, settings, accelerator.device)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learn_rate_factor(step, total=total, warmup=settings.warmup)
    )
    # `prepare` wraps the module for mixed precision and many processes; the plain one stays usable.
    wrapped, optimizer, schedule = accelerator.prepare(distiller, optimizer, schedule)

    checkpoints = Checkpoints(output / "checkpoints", keep=settings.keep_checkpoints)
    log = RunLog(output / "log.jsonl")
    start = max(checkpoints.steps(), default=0)
    if start:
        checkpoints.load(accelerator, start)
    logged = log.forget_after(start)

    batches = _my_batches(corpus.train, settings, masking, pad_id, accelerator, start, total)
    names = list(distiller.objectives)
    meter = Meter(torch.zeros(len(names), device=accelerator.device))
    latest: dict[str, float] = {}  # training losses
    scores: dict[str, float] = {}
    speed: float | None = None
    main = accelerator.is_main_process

    def held_out(step: int) -> dict[str, float]:
        found = held_out_batches(
            corpus.held_out,
            batch_size=settings.batch_size,
            masking=masking,
            pad_id=pad_id,
            seed=settings.seed,
        )
        scores = evaluate(distiller, found, accelerator)
        if main and step not in logged:
            epoch = step * _blocks_a_step(settings, accelerator) / len(corpus.train)
            display.scores(step, epoch, speed, latest.get("total"), scores)
            log.write(step, "held_out", scores)
            accelerator.log({f"held_out/{k}": v for k, v in scores.items()}, step=step)
        return scores

    with closing(Display(names, total=total, start=start, shown=main)) as display:
        distiller.train()
        # A run killed after its last step has logged these scores, but not returned them.
        if len(corpus.held_out) and start in (0, total):
            scores = held_out(start)
        for step in range(start + 1, total + 1):
            started = time.perf_counter()
            learn_rate = schedule.get_last_lr()[0]
            for _ in range(settings.accumulate):
                batch = next(batches)
                with accelerator.accumulate(wrapped):
                    means = {name: loss.mean for name, loss in wrapped(batch).items()}
                    accelerator.backward(distiller.total(means))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(wrapped.parameters(), settings.clip)
                    optimizer.step()
                    if accelerator.sync_gradients:
                        schedule.step()
                    optimizer.zero_grad()
                meter.add(means, len(batch.real) * accelerator.num_processes)
            meter.seconds += time.perf_counter() - started
            display.advance()
            if step % settings.log_frequency == 0 or step == total:
                values, speed = meter.read()
                latest = dict(zip(names, values, strict=True))
                latest["total"] = sum(distiller.objectives[n].weight * latest[n] for n in names)
                _must_be_finite(latest, step)
                display.losses(latest, speed=speed)
                if main:
                    record = {**latest, "learn_rate": learn_rate}
                    log.write(step, "train", {**record, "pieces_per_second": speed})
                    accelerator.log({f"train/{k}": v for k, v in record.items()}, step=step)
            if len(corpus.held_out) and (step % settings.eval_frequency == 0 or step == total):
                scores = held_out(step)
            if step % settings.checkpoint_frequency == 0 or step == total:
                checkpoints.save(accelerator, step)
    return scores


def make_optimizer(
    student: torch.nn.Module, settings: TrainingSettings, device: torch.device
) -> torch.optim.AdamW:
    """AdamW, fused where torch has it; biases and layer norms, the vectors, do not decay."""
    parameters = [p for p in student.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=settings.learn_rate, betas=(0.9, 0.98), fused=fused)


def learn_rate_factor(step: int, *, total: int, warmup: float) -> float:
    """Linear from 0 to 1 over the first `warmup` of the steps, then linear to 0.

    step: the number of steps taken before, so that the first step already learns something.
    """
    rising = round(total * warmup)
    if step < rising:
        return (step + 1) / (rising + 1)
    return max(0.0, (total - step) / max(1, total - rising))


def _my_batches(
    blocks: Blocks,
    settings: TrainingSettings,
    masking: Masking,
    pad_id: int,
    accelerator: Accelerator,
    start: int,
    total: int,
) -> Iterator[Batch]:
    """Every n-th batch of the run's steps `start` to `total`, where there are n processes."""
    batches = TrainingBatches(
        blocks,
        batch_size=settings.batch_size,
        masking=masking,
        pad_id=pad_id,
        seed=settings.seed,
    )
    n, a_step = accelerator.num_processes, settings.accumulate * accelerator.num_processes
    for position in range(start * a_step + accelerator.process_index, total * a_step, n):
        yield batches[position].to(accelerator.device)


def _blocks_a_step(settings: TrainingSettings, accelerator: Accelerator) -> int:
    return settings.batch_size * settings.accumulate * accelerator.num_processes


def _must_be_finite(losses: dict[str, float], step: int) -> None:
    for name, loss in losses.items():
        if not math.isfinite(loss):
            raise DistilError(
                f"the loss {name!r} is {loss} at step {step}: training has diverged. Start again "
                f"with a lower training.learn_rate, a longer training.warmup or "
                f'training.mixed_precision = "no"'
            )
