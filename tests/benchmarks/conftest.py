"""Fixtures of the benchmarks' tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from unittest import mock

import pytest
import torch


@pytest.fixture(scope="module")
def quick_collection() -> Iterator[None]:
    """Benchmarks collect garbage before they time anything. Freeze the objects of the test session,
    which would make that slow.
    """
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def environment() -> Iterator[None]:
    """Restore the environment and torch's threads, which benchmarks set for their process."""
    threads = torch.get_num_threads()
    with mock.patch.dict(os.environ):
        yield
    torch.set_num_threads(threads)
