"""Which compiled part is loaded."""

from __future__ import annotations

import _ctypes
import shutil
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from spacy_distil.engines.fused import library


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the compiled part. It is not there yet."""
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    return tmp_path / f"{library.NAME}{EXTENSION_SUFFIXES[0]}"


def test_an_install_without_it(compiled: Path) -> None:
    assert library.load.__wrapped__() is None


def test_a_damaged_one(compiled: Path) -> None:
    compiled.write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="cannot be loaded, so ONNX Runtime"):
        assert library.load.__wrapped__() is None


@pytest.mark.skipif(not hasattr(_ctypes, "__file__"), reason="its Python has all modules inside")
def test_one_of_another_version(compiled: Path) -> None:
    """Its types may be others, and it reads them without looking."""
    shutil.copy(_ctypes.__file__, compiled)
    with pytest.warns(UserWarning, match="was compiled from another version"):
        assert library.load.__wrapped__() is None
