"""A plugin of pytest: `-p tests.cuda_simulation.plugin` runs all tests on the simulated device."""

from __future__ import annotations

from contextlib import ExitStack

from tests.cuda_simulation import library

library.load()

from tests.cuda_simulation.device import NAME, simulate  # noqa: E402

# Now, because conftests are loaded before the first hook is called, and look for a GPU.
_simulation = ExitStack()
_simulation.enter_context(simulate())


def pytest_report_header() -> str:
    return f"CUDA: {NAME}"


def pytest_unconfigure() -> None:
    _simulation.close()
