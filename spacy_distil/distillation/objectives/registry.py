"""The registry that configs name objectives in: `@distil_objectives = "spacy-distil.Cosine.v1"`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import catalogue
from confection import ConfigValidationError
from spacy.util import registry

from spacy_distil.errors import ConfigError

if TYPE_CHECKING:
    from spacy_distil.distillation.objectives.base import Objective

# Other packages add objectives through the entry point group `spacy_distil_objectives`.
if not hasattr(registry, "distil_objectives"):
    registry.create("distil_objectives", entry_points=True)
distil_objectives: catalogue.Registry = registry.distil_objectives


def at_least(name: str, value: float, bound: float, *, exclusive: bool = False) -> None:
    """Raise `ConfigError` where an objective's argument is too small."""
    if value < bound or (exclusive and value == bound):
        relation = "above" if exclusive else "at least"
        raise ConfigError(f"{name} = {value!r}: must be {relation} {bound}")


def make_objective(name: str, block: Mapping[str, Any]) -> Objective:
    """Build the objective that a block `[objectives.NAME]` describes."""
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
        return registry.resolve({name: dict(block)})[name]
    except ConfigValidationError as error:
        problems = [
            f"objectives.{'.'.join(map(str, e['loc']))}"
            + (f" = {block[e['loc'][-1]]!r}" if e["loc"] and e["loc"][-1] in block else "")
            + f": {e['msg']}"
            for e in error.errors or []
        ]
        raise ConfigError("\n".join(problems) or str(error)) from error
    except ConfigError as error:
        raise ConfigError(f"objectives.{name}.{error}") from error
