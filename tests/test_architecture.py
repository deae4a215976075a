"""The rooms of docs/architecture.md: which module may import which."""

from __future__ import annotations

import re

from tests.imports import MODULES, PACKAGE, ROOT, import_closure, read_imports

# Rooms whose modules may import torch and transformers at once.
TORCH_ROOMS = ("students", "distillation.encoder")
# The same goes for the modules of engines/, but for these and what they import.
LIGHT_ENGINES = ("spacy_distil.engines", "spacy_distil.engines.onnx")


def read_rooms() -> list[list[str]]:
    """The rooms by the table of docs/architecture.md, top to bottom: of each, its modules."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf8")
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    (table,) = (table for table in tables if re.search(r"^\| *`cli/`", table, re.MULTILINE))
    rooms = []
    for row in table.splitlines():
        paths = re.findall(r"`([^`]+)`", row.split("|")[1])
        if paths:
            rooms.append([path.removesuffix(".py").strip("/").replace("/", ".") for path in paths])
    return rooms


ROOMS = read_rooms()


def room_of(module: str) -> int | None:
    """The number of a module's room, from the top. None for a package around rooms, whose module
    is what users import.
    """
    inside = module.removeprefix(f"{PACKAGE}.")
    numbers = [
        number
        for number, names in enumerate(ROOMS)
        if any(inside == name or inside.startswith(f"{name}.") for name in names)
    ]
    assert len(numbers) <= 1, f"{module} is in several rooms"
    if not numbers:
        assert MODULES[module].name == "__init__.py", f"{module} is in no room"
        return None
    return numbers[0]


def test_every_room_exists() -> None:
    for names in ROOMS:
        for name in names:
            assert f"{PACKAGE}.{name}" in MODULES


def test_a_room_imports_only_rooms_below_it() -> None:
    wrong = []
    for module, path in MODULES.items():
        room = room_of(module)
        for each in read_imports(path) if room is not None else ():
            if each.module not in MODULES or each.module == PACKAGE:
                continue  # the package itself has nothing but its version
            other = room_of(each.module)
            # A package around rooms is for users, and for the command line.
            if room != 0 if other is None else other < room:
                wrong.append(f"{path}:{each.line} imports {each.module}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {
        name: {each.module for each in read_imports(path)} & MODULES.keys() - {PACKAGE}
        for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, [*way, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def may_import_torch(module: str) -> bool:
    inside = module.removeprefix(f"{PACKAGE}.")
    if inside.startswith("engines."):
        return module not in import_closure(*LIGHT_ENGINES)
    return any(f"{inside}.".startswith(f"{room}.") for room in TORCH_ROOMS)


def test_torch_stays_behind_the_wall() -> None:
    """Neither by itself nor by way of others does a module outside import it at once."""
    outside = [module for module in MODULES if not may_import_torch(module)]
    wrong = {
        f"{module} imports {MODULES[name]}:{each.line}"
        for module in outside
        for name in import_closure(module)
        for each in read_imports(MODULES[name])
        if each.at_once and each.top in ("torch", "transformers", "accelerate")
    }
    assert not wrong, "\n".join(sorted(wrong))
