"""What CPU this is."""

from __future__ import annotations

import platform
from pathlib import Path

_INFO = Path("/proc/cpuinfo")


def cpu_model() -> str:
    """The CPU's name as it gives it itself, else its architecture."""
    return _info("model name") or platform.processor() or platform.machine()


def has_vnni() -> bool | None:
    """Whether an x86 CPU adds up int8 products in 32 bits; `None` where that cannot be read.

    Those without VNNI (AVX2 alone) add two products in 16 bits, which can saturate.
    """
    flags = _info("flags")
    if flags is None:
        return None
    return any("vnni" in flag for flag in flags.split())


def _info(key: str) -> str | None:
    """The first entry of that name in Linux's list of CPUs."""
    if not _INFO.is_file():
        return None
    for line in _INFO.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None
