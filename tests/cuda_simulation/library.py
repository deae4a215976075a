"""Build `runtime.cpp`, and load it before torch."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

SOURCE = Path(__file__).with_name("runtime.cpp")


def find_compiler() -> str | None:
    """Return the path of a C++ compiler, or None."""
    return shutil.which("g++") or shutil.which("clang++")


def load() -> None:
    """Register the device with torch's C++ code.

    torch looks for devices when it is imported, and does not look again.
    """
    if "torch" in sys.modules:
        raise ImportError(
            "torch is imported already: start pytest with -p tests.cuda_simulation.plugin"
        )
    spec, compiler = find_spec("torch"), find_compiler()
    if spec is None or spec.origin is None or compiler is None:
        raise ImportError("the simulation needs torch and a C++ compiler")
    torch = Path(spec.origin).parent
    # Its symbols must be there for the library, which does not name it.
    ctypes.CDLL(str(torch / "lib" / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
    with TemporaryDirectory() as directory:
        built = Path(directory) / "runtime.so"
        headers = ["-isystem", str(torch / "include")]
        options = ["-std=c++20", "-shared", "-fPIC", *headers, str(SOURCE), "-o", str(built)]
        subprocess.run([compiler, *options], check=True)
        ctypes.CDLL(str(built))  # stays loaded without its file
