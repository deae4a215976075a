"""Maps of a student's layers to its teacher's."""

from __future__ import annotations

from typing import Any

import pytest

from spacy_distil.errors import ConfigError
from spacy_distil.students.layer_map import layer_map


@pytest.mark.parametrize(
    ("setting", "n_student", "n_teacher", "expected"),
    [
        ("last", 3, 6, [(3, 6)]),
        ("even", 3, 6, [(1, 2), (2, 4), (3, 6)]),
        ("even", 2, 3, [(1, 2), (2, 3)]),
        ("even", 3, 12, [(1, 4), (2, 8), (3, 12)]),
        ("even", 2, 2, [(1, 1), (2, 2)]),
        ("even", 6, 2, [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2)]),
        ([[0, 0], [3, 5]], 3, 6, [(0, 0), (3, 5)]),
        ([(3, 6), (3, 2)], 3, 6, [(3, 6), (3, 2)]),
    ],
)
def test_layer_map(setting: Any, n_student: int, n_teacher: int, expected: Any) -> None:
    assert layer_map(setting, n_student, n_teacher, name="layers") == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("first", r"^hidden\.layers = 'first': expected \"last\""),
        ([], r"^hidden\.layers = \[\]: expected"),
        ([[1, 2, 3]], r"layers = \[\[1, 2, 3\]\]: expected"),
        ([3], r"layers = \[3\]: expected"),
        (["ab"], r"layers = \['ab'\]: expected"),
        ([[1, 2.5]], r"layers = \[\[1, 2\.5\]\]: expected"),
        (
            [[1, 2], [4, 2]],
            r"\[4, 2\]\]: the student has no layer 4\. Its layers are 1 to 3; 0 is its embeddings",
        ),
        ([[1, 7]], r"layers = \[\[1, 7\]\]: the teacher has no layer 7\. Its layers are 1 to 6"),
        ([[-1, 6]], r"the student has no layer -1"),
    ],
)
def test_wrong_layer_map_is_refused(setting: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        layer_map(setting, 3, 6, name="hidden.layers")


def test_embeddings_can_be_refused() -> None:
    assert layer_map([[1, 1]], 3, 6, name="layers", lowest=1) == [(1, 1)]
    with pytest.raises(ConfigError, match=r"the teacher has no layer 0\. Its layers are 1 to 6\.$"):
        layer_map([[1, 0]], 3, 6, name="layers", lowest=1)
