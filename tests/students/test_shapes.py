"""Shapes that a student can have, and shapes that it cannot."""

from __future__ import annotations

from typing import Any

import pytest

from spacy_distil.errors import ConfigError
from spacy_distil.students.shapes import Shape, choose_shape, shape_of
from tests.students.test_making import SIZE, config_of


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, Shape(2, 12, 1536, 384)),
        ({"heads": 6}, Shape(2, 6, 1536, 384)),
        ({"ffn": 768}, Shape(2, 12, 768, 384)),
        ({"width": 256}, Shape(2, 8, 1536, 256)),
        ({"width": 256, "heads": 4, "ffn": 1}, Shape(2, 4, 1, 256)),
        ({"width": 250, "heads": 5}, Shape(2, 5, 1536, 250)),
        ({"width": 32}, Shape(2, 1, 1536, 32)),
        ({"width": 384, "heads": 12, "ffn": 1536}, Shape(2, 12, 1536, 384)),
    ],
)
def test_shape_of_a_student(settings: dict[str, int], shape: Shape) -> None:
    teacher = config_of("bert", hidden_size=384, num_attention_heads=12, intermediate_size=1536)
    actual = choose_shape(teacher, "even", 2, **settings)
    assert (actual.layers, actual.shape) == ((0, 2), shape)
    assert actual.teacher == shape_of(teacher) == Shape(4, 12, 1536, 384)
    whole = {"heads": 12, "ffn": 1536, "width": 384}
    assert actual.cuts == [name for name in whole if getattr(shape, name) < whole[name]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 13}, r"student\.heads = 13: must be from 1 to the teacher's 12"),
        ({"ffn": 0}, r"student\.ffn = 0: must be from 1 to the teacher's 1536"),
        ({"width": 400}, r"student\.width = 400: must be from 1 to the teacher's 384"),
        ({"heads": 5}, r"student\.heads = 5.*no multiple.*one of 1, 2, 3, 4, 6, 8, 12$"),
        ({"width": 250}, r"student\.width = 250.*no multiple of 32.*one of 1, 2, 5,"),
        ({"width": 36}, r"student\.width = 36.*no multiple of 32.*one of 1,"),
        ({"width": 30}, r"student\.width = 30: must be at least 32"),
        (
            {"width": 192, "heads": 12},
            r"heads of 16 in a width of 192 \(student\.width\) are smaller than the teacher's of "
            r"32.*one of 1, 2, 3, 4, 6$",
        ),
    ],
)
def test_impossible_shape(settings: dict[str, int], message: str) -> None:
    teacher = config_of("bert", hidden_size=384, num_attention_heads=12, intermediate_size=1536)
    with pytest.raises(ConfigError, match=message):
        choose_shape(teacher, **settings)


def test_cuts_that_a_family_cannot_have_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"student\.heads and student\.ffn: .*'albert'.*bert, d"):
        choose_shape(config_of("albert"), heads=3, ffn=8)
    grouped = config_of("albert", num_hidden_groups=2)
    with pytest.raises(ConfigError, match=r"\[0, 2, 3\].*groups \[0, 1, 1\], but.*has \[0, 0, 1\]"):
        choose_shape(grouped, [0, 2, 3])
    with pytest.raises(ConfigError, match=r"student\.width = 10.*'electra'"):
        choose_shape(config_of("electra", embedding_size=10), width=10, heads=1)


def test_heads_with_relative_positions_keep_their_size() -> None:
    config = config_of("bert", position_embedding_type="relative_key")
    with pytest.raises(ConfigError, match=r"student\.heads = 3: .*'relative_key'.*heads of 4"):
        choose_shape(config, heads=3)
    assert choose_shape(config, width=16, heads=4).shape.head_size == SIZE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 5}, "^--heads = 5: a width of 24 "),
        ({"width": 7}, r"^--width = 7: it is no multiple of 4.* Set --heads to one of 1"),
        ({"width": 12, "heads": 6}, r"^--heads = 6: heads of 2 in a width of 12 \(--width\)"),
        ({"width": 99}, "^--width = 99: must be"),
        ({"layers": [9]}, r"^--layers = \[9\]: must list"),
        ({"layers": "last", "n_layers": 9}, "^--n_layers = 9, but"),
    ],
)
def test_errors_name_settings_as_the_user_wrote_them(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        choose_shape(config_of("bert"), **settings, prefix="--")
    assert "student." not in str(caught.value)
