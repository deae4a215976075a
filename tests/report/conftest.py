"""Stock pipelines, and an interpreter that measures them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from spacy.tokens import Doc

from tests.report.stock_pipelines import Trained, save, train_all

# An interpreter in whose environment only spaCy is installed.
BARE_PYTHON = """#!{python}
import os, runpy, sys
from importlib import metadata

GONE = ("spacy_distil", "psutil", "matplotlib", "torch", "transformers")

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in GONE:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
installed = metadata.distributions
metadata.distributions = lambda **kwargs: (
    each for each in installed(**kwargs)
    if each.name not in ("spacy-distil", "spacy-transformers", "spacy-curated-transformers", *GONE)
)
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_all(tmp_path_factory.getbasetemp())


@pytest.fixture
def write_docs(tmp_path: Path) -> Callable[[list[Doc]], Path]:
    """Save docs to a .spacy file of this test."""
    return lambda docs: save(docs, tmp_path / "docs.spacy")


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that starts several times faster, since it cannot import torch."""
    if os.name != "posix":
        pytest.skip("the interpreter is a shell script")
    file = tmp_path_factory.mktemp("bare") / "python"
    file.write_text(BARE_PYTHON.format(python=sys.executable))
    file.chmod(0o755)
    return str(file)
