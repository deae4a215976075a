"""Identify the CPU."""

from __future__ import annotations

import platform
from pathlib import Path

_INFO = Path("/proc/cpuinfo")


def cpu_model() -> str:
    """Return the name of the CPU, or its architecture if the name is not known."""
    return _info("model name") or platform.processor() or platform.machine()


def has_vnni() -> bool | None:
    """Check whether an x86 CPU sums int8 products in 32 bits; None if that cannot be read.

    A CPU without VNNI (AVX2 only) sums two products in 16 bits, which can saturate.
    """
    flags = _info("flags")
    if flags is None:
        return None
    return any("vnni" in flag for flag in flags.split())


def _info(key: str) -> str | None:
    """Return the first value of `key` in Linux's list of CPUs, or None."""
    if not _INFO.is_file():
        return None
    for line in _INFO.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None
