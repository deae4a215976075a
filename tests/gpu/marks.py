"""Marks of tests that need a GPU."""

from __future__ import annotations

import pytest

from tests.cuda_simulation.device import is_active

# It has no memory of its own, can be forked, and runs nothing that torch compiles.
real_gpu = pytest.mark.skipif(is_active(), reason="the simulated GPU cannot do this")
