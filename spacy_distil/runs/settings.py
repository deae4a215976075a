"""Config files, and their sections as typed settings. Errors name section, key and value."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from confection import Config, ConfigValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from spacy.util import load_config

from spacy_distil.errors import ConfigError

Paths = Annotated[list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """One section of a config: its fields are the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Section)


def read_section(name: str, kind: type[S], values: Mapping[str, Any]) -> S:
    """Validate the section [name]. Raises `ConfigError` that lists all of its errors."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        problems: dict[str, list[str]] = {}
        shown: dict[str, Any] = {}
        for problem in error.errors():
            # A setting of several types has one problem per type; its name comes first. In a block
            # within the section, the block's name does.
            key, value = str(problem["loc"][0]), values.get(str(problem["loc"][0]))
            for inner in problem["loc"][1:]:
                if isinstance(value, Mapping) and inner in value:
                    key, value = f"{key}.{inner}", value[inner]
            shown[key] = value
            problems.setdefault(key, []).append(problem["msg"])
        lines = []
        for key, reasons in problems.items():
            if key.split(".")[0] not in kind.model_fields:
                lines.append(
                    f"{name}.{key} = {shown[key]!r}: no such setting. Settings of [{name}]: "
                    f"{', '.join(kind.model_fields)}"
                )
            elif key.split(".")[0] not in values:
                lines.append(f"{name}.{key} is missing")
            else:
                reason = ", or ".join(dict.fromkeys(reasons))
                lines.append(f"{name}.{key} = {shown[key]!r}: {reason}")
        raise ConfigError("\n".join(lines)) from error


def read_config(
    config: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None,
    *,
    kind: str,
    complete: Callable[[Config], None] | None = None,
) -> tuple[Config, Config]:
    """Read the config of a distillation run.

    config: path of a file, or the sections as nested dicts.
    overrides: settings by dotted name.
    kind: the argument of `spacy distil init-config` that writes such a config, for errors.
    complete: adds blocks that the config may leave out, since `overrides` can only change settings
        of blocks that exist.
    RETURNS: the config as it is written, and with the values of its variables.
    """
    try:
        if isinstance(config, Mapping):
            read = Config(config).copy()
        elif Path(config).is_file():
            read = load_config(config, interpolate=False)
        else:
            raise ConfigError(
                f"config {config} does not exist. This command writes a commented one: "
                f"python -m spacy distil init-config {kind} {config}"
            )
        if complete is not None:
            complete(read)
        text = read.to_str(interpolate=False)
        read = Config().from_str(text, overrides=dict(overrides or {}), interpolate=False)
        return read, read.interpolate()
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {config} is not a text file in UTF-8: {error}") from error
    except ConfigValidationError as error:
        problems = [f"{'.'.join(e['loc'])}: {e['msg']}" for e in error.errors or []]
        raise ConfigError("\n".join(problems) or str(error).strip()) from error


def changed_settings(
    before: Mapping[str, Any], after: Mapping[str, Any], free: Collection[str] = ()
) -> list[str]:
    """List the dotted names of the settings that differ, sorted.

    free: names to ignore. "a.b" stands for "a.b.c", too.
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
