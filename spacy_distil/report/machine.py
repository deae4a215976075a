"""Machine and software of a measurement."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from spacy_distil.cpu import cpu_model
from spacy_distil.errors import require

PACKAGES = (
    "spacy-distil",
    "spacy",
    "thinc",
    "numpy",
    "tokenizers",
    "torch",
    "transformers",
    "spacy-transformers",
    "onnxruntime",
)


def describe_machine() -> dict[str, Any]:
    """Collect CPU, cores, memory, platform and versions (`None` for a missing package)."""
    psutil = require("psutil", extra="report", purpose="Describing the machine")
    return {
        "cpu": cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
    }


def command_line() -> str:
    """The command line of this process, with the name of the module instead of its file."""
    program, *arguments = sys.argv
    module = sys.modules["__main__"].__spec__
    name = Path(program).name if module is None else f"python -m {module.name}"
    return f"{name.removesuffix('.__main__')} {shlex.join(arguments)}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
