"""A plugin of pytest: `-p tests.cuda_simulation.plugin` runs all tests on the simulated device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cuda_simulation import library

library.load()

from tests.cuda_simulation.device import NAME, simulate  # noqa: E402


def pytest_report_header() -> str:
    return f"CUDA: {NAME}"


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main() -> Iterator[None]:
    with simulate():
        return (yield)
