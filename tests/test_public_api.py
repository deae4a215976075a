"""`import spacy_distil`, and the functions that it offers."""

from __future__ import annotations

import inspect

import pytest

import spacy_distil
from tests.test_light_import import run_python


def test_the_import_costs_nothing() -> None:
    """It imports one module, and what of Python's own that needs."""
    out = run_python(
        """
        before = set(sys.modules)
        import spacy_distil
        added = set(sys.modules) - before
        print(sorted(name for name in added if name.split(".")[0] not in sys.stdlib_module_names))
        print(spacy_distil.__version__ in str(spacy_distil.__dict__), len(dir(spacy_distil)) > 6)
        print(set(sys.modules) - before == added)
        """,
        block=True,
    )
    assert out.splitlines() == ["['spacy_distil']", "True True", "True"]


@pytest.mark.parametrize("name", sorted({*spacy_distil.__all__} - {"__version__"}))
def test_every_name_is_a_function_with_a_docstring(name: str) -> None:
    function = getattr(spacy_distil, name)
    assert inspect.isfunction(function)
    assert function.__name__ == name
    assert inspect.getdoc(function)
    assert getattr(spacy_distil, name) is function
    assert name in dir(spacy_distil)


def test_names_for_type_checkers_are_those_that_are_loaded() -> None:
    assert {*spacy_distil.__all__} == {*spacy_distil._MODULES, "__version__"}
    assert spacy_distil.__all__ == sorted(spacy_distil.__all__)
    source = inspect.getsource(spacy_distil)
    for name, module in spacy_distil._MODULES.items():
        (line,) = (line for line in source.splitlines() if line.startswith(f"    from {module} "))
        assert name in line


def test_star_import() -> None:
    namespace: dict[str, object] = {}
    exec("from spacy_distil import *", namespace)
    assert namespace.keys() >= {*spacy_distil.__all__}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'spacy_distil' has no attribute 'distill'"):
        spacy_distil.distill  # noqa: B018
    with pytest.raises(ImportError):
        exec("from spacy_distil import distill")
    assert not hasattr(spacy_distil, "distill")
