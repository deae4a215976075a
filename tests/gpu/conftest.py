"""Everything here needs a CUDA GPU, and is skipped without one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from thinc.api import get_current_ops, set_current_ops, use_ops


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA GPU")


@pytest.fixture(params=["numpy", "cupy"])
def heads(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the heads compute: on the CPU, or on the GPU by CuPy."""
    before = get_current_ops()
    if request.param == "cupy":
        pytest.importorskip("cupy", reason="CuPy is not installed: heads stay on the CPU")
    with use_ops(request.param):
        yield request.param
    set_current_ops(before)
