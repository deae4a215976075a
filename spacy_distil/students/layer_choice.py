"""Which layers of a teacher a student is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from spacy_distil.errors import ConfigError

Layers = Literal["first", "last", "even", "ends", "all"] | Sequence[int]


def choose_layers(
    layers: Layers, n_layers: int | None, *, available: int, prefix: str = "student."
) -> list[int]:
    """The teacher's layers that the student is made of, bottom up.

    layers: "first", the lowest ones; "last", the highest ones; "even", evenly spaced ones from the
        lowest, every second where they are half of all; "ends", half of them from the bottom, which
        has one more of an odd number, and half from the top; "all"; or a list of layers, 0 being
        the lowest.
    n_layers: how many; `None` is as many as `layers` lists, or half of those available.
    available: how many the teacher has.
    prefix: of these settings where the user wrote them, for errors.
    """
    if layers == "all":
        layers = range(available)
        listed = f"{prefix}layers = 'all' is {available}"
    elif not isinstance(layers, str):
        listed = f"{prefix}layers lists {len(layers)}"
    else:
        return _pick(layers, n_layers, available, prefix)
    chosen = list(layers)
    if not chosen or sorted(set(chosen)) != chosen or not 0 <= chosen[0] <= chosen[-1] < available:
        raise ConfigError(
            f"{prefix}layers = {chosen}: must list layers of the teacher from 0 to "
            f"{available - 1}, each once, in ascending order"
        )
    if n_layers not in (None, len(chosen)):
        raise ConfigError(f"{prefix}n_layers = {n_layers}, but {listed}. Set n_layers to null")
    return chosen


def _pick(kind: str, n_layers: int | None, available: int, prefix: str) -> list[int]:
    count = max(1, available // 2) if n_layers is None else n_layers
    if count > available:
        raise ConfigError(f"{prefix}n_layers = {count}, but the teacher has {available} layers")
    if count < 1:
        raise ConfigError(f"{prefix}n_layers = {count}: must be from 1 to {available}")
    top = {"first": 0, "last": count, "ends": count // 2}
    if kind in top:
        return [*range(count - top[kind]), *range(available - top[kind], available)]
    if kind == "even":
        return [index * available // count for index in range(count)]
    raise ConfigError(
        f"{prefix}layers = {kind!r}: must be 'first', 'last', 'even', 'ends', 'all' or a list of "
        f"layers"
    )
