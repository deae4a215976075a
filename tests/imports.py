"""The imports of our own code, read from its text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "spacy_distil"


@dataclass(frozen=True)
class Import:
    """An import of a module.

    module: dotted name, as far as it is a module: of `from a.b import c`, a.b.c if that is one of
        ours, otherwise a.b.
    line: of the file.
    at_once: whether the import runs with the module, and not when a function is called.
    """

    module: str
    line: int
    at_once: bool

    @property
    def top(self) -> str:
        return self.module.split(".")[0]


def find_modules(*directories: str) -> dict[str, Path]:
    """Our modules by dotted name. A package has the name of its directory."""
    modules = {}
    for directory in directories or (PACKAGE,):
        for path in sorted((ROOT / directory).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = find_modules()


@cache
def read_imports(path: Path) -> list[Import]:
    """The imports of a file, without those for type checkers alone."""
    return [*_walk(ast.parse(path.read_text(encoding="utf8")), at_once=True)]


def _walk(node: ast.AST, *, at_once: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, at_once)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative imports are not resolved here"
            for alias in child.names:
                name = f"{child.module}.{alias.name}"
                yield Import(name if name in MODULES else str(child.module), child.lineno, at_once)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _walk(other, at_once=at_once)
        else:
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _walk(child, at_once=at_once and not is_function)


@cache
def import_closure(*names: str) -> frozenset[str]:
    """Our modules that these import at once, themselves and the packages around them included."""
    found: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        while name not in found and name in MODULES:
            found.add(name)
            pending += [each.module for each in read_imports(MODULES[name]) if each.at_once]
            name = name.rpartition(".")[0]
    return frozenset(found)
