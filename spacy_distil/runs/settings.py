"""Sections of config files as typed settings, with errors that name section, key and value."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from spacy_distil.errors import ConfigError

Paths = Annotated[list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """One section of a config: its fields are the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Section)


def read_section(name: str, kind: type[S], values: Mapping[str, Any]) -> S:
    """The settings of the section [name]. Raises ConfigError for whatever is wrong with it."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        problems: dict[str, list[str]] = {}
        for problem in error.errors():
            # A setting of several types has one problem per type; its name comes first.
            key = str(problem["loc"][0])
            problems.setdefault(key, []).append(problem["msg"])
        lines = []
        for key, reasons in problems.items():
            if key not in kind.model_fields:
                lines.append(
                    f"{name}.{key} = {values[key]!r}: no such setting. Settings of [{name}]: "
                    f"{', '.join(kind.model_fields)}"
                )
            elif key not in values:
                lines.append(f"{name}.{key} is missing")
            else:
                reason = ", or ".join(dict.fromkeys(reasons))
                lines.append(f"{name}.{key} = {values[key]!r}: {reason}")
        raise ConfigError("\n".join(lines)) from error


def changed_settings(
    before: Mapping[str, Any], after: Mapping[str, Any], free: Collection[str] = ()
) -> list[str]:
    """Dotted names of the settings that differ, sorted.

    free: names that do not count; "a.b" stands for "a.b.c" too.
    """
    old, new = _flatten(before), _flatten(after)
    differing = {key for key in {**old, **new} if old.get(key) != new.get(key)}
    return sorted(
        key
        for key in differing
        if not any(key == name or key.startswith(f"{name}.") for name in free)
    )


def _flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
