"""The simulated device behind `torch.cuda`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from tests.cuda_simulation import tensors
from tests.cuda_simulation.waits import waits

NAME = "simulated GPU"
MEMORY = 2**37

_active = False


def is_active() -> bool:
    """Whether `torch.cuda` is the simulation."""
    return _active


@contextmanager
def simulate() -> Iterator[None]:
    """Let torch see the simulated device. `library.load` must have run before torch's import."""
    global _active
    if torch.backends.cuda.is_built():
        raise RuntimeError("this torch has CUDA: the simulation needs one that is built for CPUs")
    # A library's kernels are there as long as the object.
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", tensors.empty, "CUDA")
    library.impl("empty_strided", tensors.empty_strided, "CUDA")
    library.impl("copy_", tensors.copy_, "CUDA")  # for `torch.tensor(..., device="cuda")`
    with ExitStack() as stack:
        for name, function in _driver().items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", tensors.pin))
        stack.enter_context(mock.patch.object(torch.Tensor, "is_pinned", tensors.is_pinned))
        _active = True
        try:
            yield
        finally:
            _active = False


def _driver() -> dict[str, Any]:
    """Return functions of `torch.cuda` by name."""
    properties = SimpleNamespace(name=NAME, major=9, minor=0, total_memory=MEMORY)
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "get_device_properties": properties,
        "get_device_name": NAME,
        "get_device_capability": (9, 0),
        "is_bf16_supported": True,
        "empty_cache": None,
        "manual_seed_all": None,
        "_lazy_init": None,
        "_is_in_bad_fork": False,
    }
    return {
        **{name: _answer(value) for name, value in answers.items()},
        "synchronize": lambda device=None: waits.note("torch.cuda.synchronize"),
        "set_sync_debug_mode": _set_sync_debug_mode,
        # It draws from the generator of the CPU.
        "get_rng_state": lambda device="cuda": torch.get_rng_state(),
        "set_rng_state": lambda state, device="cuda": torch.set_rng_state(state),
    }


def _answer(value: Any) -> Any:
    return lambda *args, **kwargs: value


def _set_sync_debug_mode(mode: str) -> None:
    waits.forbidden = {"default": False, "error": True}[mode]
