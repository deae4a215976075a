from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from spacy_distil import errors


def test_an_installed_module_is_imported() -> None:
    assert errors.require("math", extra="train", purpose="Counting") is math


def test_a_missing_module_names_its_extra() -> None:
    with pytest.raises(errors.MissingExtraError) as error:
        errors.require("no_such_module.inside", extra="train", purpose="Counting")
    assert str(error.value) == (
        "Counting needs 'no_such_module', which is not installed. "
        "Install it with: pip install 'spacy-distil[train]'"
    )


def test_all_missing_modules_are_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if an installed one needs one of the others, which is missing."""
    (tmp_path / "needs_another.py").write_text("import no_such_module\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    modules = {
        "needs_another": "interop",
        "math": "demo",
        "no_such_module.inside": "train",
        "another_one": "export",
        "one_more": "train",
    }
    with pytest.raises(errors.MissingExtraError) as error:
        errors.require_all(modules, purpose="Counting")
    assert str(error.value) == (
        "Counting needs 'no_such_module' and 'another_one' and 'one_more', which are not "
        "installed. Install them with: pip install 'spacy-distil[train,export]'"
    )


def test_a_broken_module_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_dependency\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency") as error:
        errors.require("half_installed", extra="train", purpose="Counting")
    assert not isinstance(error.value, errors.MissingExtraError)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.ConfigError, ValueError),
        (errors.WeightsError, ValueError),
        (errors.CorpusError, ValueError),
        (errors.MissingExtraError, ImportError),
    ],
)
def test_errors_can_be_caught_together_and_by_kind(
    error: type[Exception], kind: type[Exception]
) -> None:
    assert issubclass(error, errors.DistilError)
    assert issubclass(error, kind)
