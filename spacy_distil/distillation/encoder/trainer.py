"""One optimizer step."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from spacy_distil.distillation.encoder.config import TrainingSettings
from spacy_distil.distillation.encoder.distiller import Distiller, Losses
from spacy_distil.distillation.encoder.meter import Meter
from spacy_distil.distillation.encoder.steps import EncoderStage, StepBatches
from spacy_distil.students.masking import Masking


@dataclass
class Trainer:
    """Trains the student of a distiller, step by step.

    distiller: on the accelerator's device, as is `masking`.
    wrapped: the distiller as accelerate wraps it for mixed precision and several processes.
    clip: maximum norm of a step's gradient.
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
        """Make the optimizer, and compile and wrap the distiller as the settings ask."""
        if settings.compile:
            distiller.compile_encoders()
        optimizer = make_optimizer(distiller, settings, accelerator.device)
        wrapped, prepared = accelerator.prepare(distiller, optimizer)
        device = accelerator.device
        return cls(distiller, wrapped, prepared, masking.to(device), accelerator, settings.clip)

    def step(
        self, step: int, batches: StepBatches, stage: EncoderStage, meter: Meter | None = None
    ) -> Tensor:
        """Take one optimizer step.

        The CPU does not wait for the device, except where transformers inspects an attention mask.
        Version 5 does so for the batch with the corpus's last, shorter block; version 4 in every
        forward pass of most families.

        step: number of steps taken before.
        RETURNS: norm of the gradient before clipping, a scalar.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = stage.rate(step)
        last = len(batches.micro_batches) - 1
        # A micro-batch has a share of the mean loss of the whole step.
        positions = {
            name: batches.positions(masked=self.distiller.objective(name).needs.masking)
            for name in stage.objectives
        }
        for index, micro_batch in enumerate(batches.micro_batches):
            batch = self.masking(micro_batch.to(self.accelerator.device))
            # Processes add up their gradients in the last backward pass only.
            with nullcontext() if index == last else self.accelerator.no_sync(self.wrapped):
                losses: Losses = self.wrapped(batch, step, stage.objectives, positions)
                # Processes average their gradients.
                self.accelerator.backward(losses.total * self.accelerator.num_processes)
            if meter is not None:
                meter.add(losses.parts)
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


def make_optimizer(
    distiller: torch.nn.Module, settings: TrainingSettings, device: torch.device
) -> torch.optim.AdamW:
    """Make an AdamW, fused if torch has it. Vectors (biases and layer norms) do not decay."""
    parameters = [p for p in distiller.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=settings.learn_rate, betas=(0.9, 0.98), fused=fused)
