"""All tests here need a CUDA GPU, and are skipped without one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from thinc.api import use_ops


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip by a marker, which pytest checks before it makes fixtures."""
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            item.add_marker(no_gpu)


@pytest.fixture(params=["numpy", "cupy"])
def heads(request: pytest.FixtureRequest) -> Iterator[str]:
    """Set the device of the heads: the CPU, or the GPU with CuPy."""
    if request.param == "cupy":
        pytest.importorskip("cupy", reason="CuPy is not installed: heads stay on the CPU")
    with use_ops(request.param):
        yield request.param
