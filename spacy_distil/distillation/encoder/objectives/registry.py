"""The registry of objectives.

A config names one by `@distil_objectives = "spacy-distil.Cosine.v1"`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import catalogue
from confection import ConfigValidationError
from spacy.util import registry

from spacy_distil.distillation.encoder.schedules import Schedule
from spacy_distil.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from spacy_distil.distillation.encoder.objectives.base import Objective

# Other packages add objectives through the entry point group `spacy_distil_objectives`.
if not hasattr(registry, "distil_objectives"):
    registry.distil_objectives = catalogue.create("spacy", "distil_objectives", entry_points=True)
distil_objectives: catalogue.Registry = registry.distil_objectives


def at_least(name: str, value: int, bound: int) -> int:
    """Return an argument of an objective. Raises `ConfigError` if it is below `bound`."""
    if value < bound:
        raise ConfigError(f"{name} = {value!r}: must be at least {bound}")
    return value


def make_objective(name: str, block: Mapping[str, Any]) -> Objective:
    """Make the objective that a block `[objectives.NAME]` describes."""
    known = ", ".join(sorted(distil_objectives.get_all()))
    if "@distil_objectives" not in block:
        raise ConfigError(
            f"[objectives.{name}] does not say which objective it is. Give it a line "
            f'@distil_objectives = "..." with one of: {known}'
        )
    kind = block["@distil_objectives"]
    if kind not in distil_objectives:
        raise ConfigError(
            f"objectives.{name}.@distil_objectives = {kind!r}: no such objective. Known: {known}"
        )
    try:
        objective: Objective = registry.resolve({name: dict(block)})[name]
        for value in vars(objective).values():
            if isinstance(value, Schedule):  # its errors may come at a later step
                value.setting = f"objectives.{name}.{value.setting}"
        return objective
    except catalogue.RegistryError as error:
        raise ConfigError(f"[objectives.{name}]: {error}") from error
    except ConfigValidationError as error:
        make = distil_objectives.get(kind)
        problems = [_describe_problem(name, p, block, make) for p in error.errors or []]
        raise ConfigError("\n".join(problems) or str(error)) from error
    except ConfigError as error:
        raise ConfigError(f"objectives.{name}.{error}") from error


def prepare_objectives(
    objectives: Mapping[str, Objective], teacher: PretrainedConfig, student: PretrainedConfig
) -> None:
    """Fit each objective to two models, see `Objective.prepare`. Errors name the objective."""
    for name, objective in objectives.items():
        try:
            objective.prepare(teacher, student)
        except ConfigError as error:
            raise ConfigError(f"objectives.{name}.{error}") from error


def _describe_problem(
    name: str, problem: Mapping[str, Any], block: Mapping[str, Any], make: Callable[..., Any]
) -> str:
    """Describe a problem that confection has reported, in one line.

    make: the function that the block's settings are the arguments of.
    """
    *path, key = problem["loc"]
    setting, reason = ".".join(["objectives", *path, key]), problem["msg"]
    if path == [name] and key in block:  # not in a schedule inside the block, and not missing
        setting += f" = {block[key]!r}"
        known = inspect.signature(make).parameters
        if key not in known:
            reason = f"no such setting. Settings of it: {', '.join(known)}"
        elif (hint := get_type_hints(make).get(key)) is not None:
            reason = f"must be {_describe_type(hint)}"
    return f"{setting}: {reason.removeprefix('at root: ')}"


def _describe_type(hint: Any) -> str:
    """Describe a type hint in the words of a config."""
    names = {int: "an integer", float: "a number", bool: "true or false", NoneType: "null"}
    if hint in names:
        return names[hint]
    arguments = get_args(hint)
    if get_origin(hint) is Iterator:
        return "a block with @schedules"
    if get_origin(hint) is list:
        return f"[{_describe_type(arguments[0])}, ...]"
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, arguments))
    if get_origin(hint) in (Union, UnionType):
        return ", or ".join(map(_describe_type, arguments))
    return str(hint)
