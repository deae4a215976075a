"""setup.cfg says what the code needs, and what a wheel has in it."""

from __future__ import annotations

import re
import sys
from configparser import ConfigParser
from importlib.machinery import EXTENSION_SUFFIXES

import pytest

import spacy_distil
from tests.imports import PACKAGE, ROOT, find_modules, import_closure, read_imports

# Distributions whose module has another name.
DISTRIBUTIONS = {"PIL": "pillow"}
OURS = {PACKAGE, "tests", "scripts", "benchmarks", "project"}
# Needed without an import of ours: torch writes TensorBoard logs with it.
NOT_IMPORTED = {"tensorboard"}

SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf8")


def required(*extras: str) -> set[str]:
    """Distributions of the base install and of extras, with those that extras take over."""
    texts = [SETUP["options"]["install_requires"]]
    texts += [SETUP["options.extras_require"][extra] for extra in extras]
    names = set()
    for line in "\n".join(texts).split("\n"):
        name = re.match(r"[\w.-]*", line.strip())
        assert name is not None
        if name.group() == "spacy-distil":
            names |= required(*line.split("[")[1].split("]")[0].split(","))
        elif name.group():
            names.add(normalized(name.group()))
    return names


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", DISTRIBUTIONS.get(name, name)).lower()


def imported(*modules: str, at_once: bool = False) -> dict[str, str]:
    """Distributions that modules of these directories import, with one of the places.

    at_once: leave out what is imported when a function is called.
    """
    places = {}
    for path in modules:
        for each in read_imports(ALL[path]):
            if each.top in sys.stdlib_module_names or each.top in OURS:
                continue
            if each.at_once or not at_once:
                places[normalized(each.top)] = f"{path}:{each.line}"
    return places


ALL = find_modules(PACKAGE, "scripts", "project", "tests", "benchmarks")


@pytest.mark.parametrize(
    ("directory", "extras"),
    [
        (PACKAGE, ("train", "report", "export", "interop")),
        ("scripts", ("demo",)),
        ("project", ("demo",)),
        ("benchmarks", ("test", "interop")),
        ("tests", ("test", "interop")),
    ],
)
def test_every_imported_package_is_declared(directory: str, extras: tuple[str, ...]) -> None:
    modules = [name for name in ALL if name.split(".")[0] == directory]
    places = imported(*modules)
    undeclared = places.keys() - required(*extras)
    assert not undeclared, {name: places[name] for name in undeclared}
    if directory == PACKAGE:
        assert required(*extras) - places.keys() == NOT_IMPORTED


def test_the_base_install_runs_pipelines() -> None:
    """The modules that spaCy imports, and the engine of quantized pipelines."""
    registered = re.findall(r"= ([\w.]+):", "\n".join(SETUP["options.entry_points"].values()))
    modules = import_closure(*registered, f"{PACKAGE}.engines.onnx")
    assert f"{PACKAGE}.component.pipe" in modules
    places = imported(*modules, at_once=True)
    undeclared = places.keys() - required()
    assert not undeclared, {name: places[name] for name in undeclared}


def test_every_file_of_the_package_is_in_the_wheel() -> None:
    patterns = SETUP["options.package_data"][PACKAGE].split()
    directory = ROOT / PACKAGE
    packaged = {path for pattern in patterns for path in directory.glob(pattern)}
    # setup.py compiles the C++ files.
    compiled = (".cpp", ".h", *EXTENSION_SUFFIXES)
    others = {
        path
        for path in directory.rglob("*")
        if path.is_file() and not path.name.endswith((".py", ".pyc", *compiled))
    }
    assert others == packaged
    assert {path.parent.name for path in packaged} == {PACKAGE, "templates"}
    # Directories without __init__.py are no packages for setuptools.
    assert all((path.parent / "__init__.py").is_file() for path in directory.rglob("*.py"))


def test_versions() -> None:
    metadata = SETUP["metadata"]
    assert metadata["version"] == "attr: spacy_distil.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", spacy_distil.__version__)
    pythons = re.findall(r"Python :: (3\.\d+)$", metadata["classifiers"], re.MULTILINE)
    assert SETUP["options"]["python_requires"] == f">={pythons[0]}"
    assert f"3.{sys.version_info.minor}" in pythons
