"""The devices that a run trains on."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)

from spacy_distil.distillation.encoder.config import TrainingSettings
from spacy_distil.engines.onednn import is_faster, use_onednn
from spacy_distil.engines.precision import has_native_bf16
from spacy_distil.errors import ConfigError, require

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_accelerator(gpu_id: int | None, settings: TrainingSettings, output: Path) -> Accelerator:
    """Choose the device of this process, and join the other processes of the run.

    gpu_id: see `distil_encoder`.
    output: directory of the run, for TensorBoard's `logs`.
    """
    has_launcher = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if gpu_id is not None and gpu_id >= 0:
        _set_gpu(gpu_id, has_launcher=has_launcher)
    cpu = gpu_id is not None and gpu_id < 0
    precision = settings.mixed_precision
    if precision == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
        precision = "bf16" if has_native_bf16(device) else "no"
    if settings.tensorboard:
        require("tensorboard", extra="train", purpose="training.tensorboard = true")
    if not has_launcher:
        # accelerate keeps one state per process. A run must not inherit an earlier run's.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    return Accelerator(
        cpu=cpu,
        mixed_precision=precision,
        log_with="tensorboard" if settings.tensorboard else None,
        project_config=ProjectConfiguration(str(output), logging_dir=str(output / "logs")),
        kwargs_handlers=[
            # The others wait this long while one process tokenizes.
            InitProcessGroupKwargs(timeout=timedelta(hours=2)),
        ],
    )


def find_unused_parameters(accelerator: Accelerator, found: bool) -> None:
    """Say whether `Accelerator.prepare` lets processes look for unused parameters in each step.

    If there are none, looking for them only costs time.
    """
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=found)


def _set_gpu(gpu_id: int, *, has_launcher: bool) -> None:
    if has_launcher:
        raise ConfigError(
            f"--gpu-id {gpu_id}: each process that a launcher starts takes the GPU of its own "
            f"number. Leave --gpu-id out, or choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu_id >= n_gpus:
        raise ConfigError(
            f"--gpu-id {gpu_id}: torch sees {n_gpus} CUDA devices. Leave --gpu-id out to use the "
            f"best device available, or give -1 for the CPU"
        )
    torch.cuda.set_device(gpu_id)


def describe_devices(accelerator: Accelerator) -> str:
    """Name the devices of all processes for the user, such as "2 x CPU"."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    count = f"{accelerator.num_processes} x " if accelerator.num_processes > 1 else ""
    return f"{count}{name}"


def prepare_models(
    teacher: PreTrainedModel, student: PreTrainedModel, accelerator: Accelerator
) -> None:
    """Make both models as fast as the device allows.

    The teacher takes the precision of its forward passes. Linear layers take the fastest library.
    """
    if accelerator.mixed_precision == "bf16":
        teacher.to(torch.bfloat16)
    teacher.to(accelerator.device)
    for model in (teacher, student):
        # Without a mask, transformers looks for padding, which makes the CPU wait for the device.
        # Blocks that need no mask have no padding.
        model.base_model.warn_if_padding_and_no_attention_mask = lambda *ids: None
        if is_faster(accelerator.device):
            use_onednn(model)
