"""Choose the teacher's layers that a student consists of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from spacy_distil.errors import ConfigError

Layers = Literal["first", "last", "even", "ends", "all"] | Sequence[int]


def choose_layers(
    layers: Layers, n_layers: int | None, *, available: int, prefix: str = "student."
) -> list[int]:
    """Choose the teacher's layers that the student consists of.

    layers: "first", the lowest layers; "last", the highest; "even", evenly spaced from the lowest
        (every second layer if half of them are chosen); "ends", half from the bottom and half from
        the top, with the odd one from the bottom; "all"; or a list of layers, 0 being the lowest.
    n_layers: how many. `None`: as many as `layers` lists, otherwise half of the available ones.
    available: number of layers of the teacher.
    prefix: of these settings as the user wrote them, for errors.
    RETURNS: numbers of layers in ascending order.
    Raises ConfigError for a choice that the teacher's layers do not allow.
    """
    if layers == "all":
        layers = range(available)
        listed = f"{prefix}layers = 'all' is {available}"
    elif not isinstance(layers, str):
        listed = f"{prefix}layers lists {len(layers)}"
    else:
        return _choose_by_name(layers, n_layers, available, prefix)
    chosen = list(layers)
    if not chosen or sorted(set(chosen)) != chosen or not 0 <= chosen[0] <= chosen[-1] < available:
        raise ConfigError(
            f"{prefix}layers = {chosen}: must list layers of the teacher from 0 to "
            f"{available - 1}, each once, in ascending order"
        )
    if n_layers not in (None, len(chosen)):
        raise ConfigError(f"{prefix}n_layers = {n_layers}, but {listed}. Set n_layers to null")
    return chosen


def _choose_by_name(name: str, n_layers: int | None, available: int, prefix: str) -> list[int]:
    count = max(1, available // 2) if n_layers is None else n_layers
    if count > available:
        raise ConfigError(f"{prefix}n_layers = {count}, but the teacher has {available} layers")
    if count < 1:
        raise ConfigError(f"{prefix}n_layers = {count}: must be from 1 to {available}")
    n_from_top = {"first": 0, "last": count, "ends": count // 2}
    if name in n_from_top:
        n_top = n_from_top[name]
        return [*range(count - n_top), *range(available - n_top, available)]
    if name == "even":
        return [index * available // count for index in range(count)]
    raise ConfigError(
        f"{prefix}layers = {name!r}: must be 'first', 'last', 'even', 'ends', 'all' or a list of "
        f"layers"
    )
