"""Counting how often the CPU waits for the GPU, a real one or the simulated one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.cuda_simulation.device import is_active
from tests.cuda_simulation.waits import waits

# Calls of the CUDA runtime that wait. `cudaMemcpyAsync` is not one of them.
WAITING = {
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
}


def count_waits(run: Callable[[], object]) -> int:
    """Count calls that wait for the GPU, and copies from it."""
    run()  # allocates, and chooses kernels
    if is_active():
        with waits.watch() as notes:
            run()
        return len(notes)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
    return sum(
        event.count
        for event in profile.key_averages()
        # Some names have the version of the function behind them.
        if event.key.split("_")[0] in WAITING or event.key.startswith("Memcpy DtoH")
    )
