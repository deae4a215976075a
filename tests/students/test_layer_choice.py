"""Choices of a teacher's layers."""

from __future__ import annotations

from typing import Any

import pytest

from spacy_distil.errors import ConfigError
from spacy_distil.students.layer_choice import Layers, choose_layers


@pytest.mark.parametrize(
    ("layers", "n_layers", "available", "chosen"),
    [
        ("first", 3, 6, [0, 1, 2]),
        ("first", None, 12, [0, 1, 2, 3, 4, 5]),
        ("first", None, 1, [0]),
        ("last", 3, 6, [3, 4, 5]),
        ("last", None, 5, [3, 4]),
        ("last", 5, 5, [0, 1, 2, 3, 4]),
        ("even", 3, 6, [0, 2, 4]),
        ("even", None, 12, [0, 2, 4, 6, 8, 10]),
        ("even", 5, 12, [0, 2, 4, 7, 9]),
        ("even", 6, 6, [0, 1, 2, 3, 4, 5]),
        ("ends", 4, 12, [0, 1, 10, 11]),
        ("ends", 3, 6, [0, 1, 5]),
        ("ends", 1, 6, [0]),
        ("ends", None, 12, [0, 1, 2, 9, 10, 11]),
        ("ends", 6, 6, [0, 1, 2, 3, 4, 5]),
        ("all", None, 4, [0, 1, 2, 3]),
        ("all", 4, 4, [0, 1, 2, 3]),
        ([0, 2, 5], None, 6, [0, 2, 5]),
        ([1], 1, 6, [1]),
    ],
)
def test_choice_of_layers(
    layers: Layers, n_layers: int | None, available: int, chosen: list[int]
) -> None:
    assert choose_layers(layers, n_layers, available=available) == chosen


@pytest.mark.parametrize(
    ("layers", "n_layers", "message"),
    [
        ("first", 7, r"student\.n_layers = 7, but the teacher has 6"),
        ("ends", 0, r"student\.n_layers = 0: must be from 1"),
        ("all", 3, r"student\.n_layers = 3, but student\.layers = 'all' is 6"),
        ("odd", None, r"student\.layers = 'odd'.*'ends'"),
        ([0, 6], None, r"student\.layers = \[0, 6\].*0 to 5"),
        ([-1, 2], None, r"student\.layers = \[-1, 2\]"),
        ([2, 0], None, "ascending"),
        ([1, 1], None, "each once"),
        ([], None, r"student\.layers = \[\]"),
        ([0, 1], 3, r"student\.n_layers = 3, but student\.layers lists 2"),
    ],
)
def test_impossible_choice_of_layers(layers: Any, n_layers: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_layers(layers, n_layers, available=6)
