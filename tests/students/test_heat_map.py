"""The heat map in a terminal and in a pipe."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from transformers import BertConfig

from spacy_distil.students.heat_map import print_importance
from spacy_distil.students.importance import Importance
from spacy_distil.students.shapes import StudentShape, choose_shape

HEADS = [[0.9, 0.3, 0.1, 0.3], [1.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.93]]
IMPORTANCE = Importance(
    heads=torch.tensor(HEADS, dtype=torch.float64),
    neurons=torch.tensor([[3.0, 1.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64),
    dims=torch.arange(1.0, 9.0, dtype=torch.float64),
    loss_kind="cosine",
    blocks=64,
)
TEACHER = BertConfig(hidden_size=8, num_hidden_layers=3, num_attention_heads=4, intermediate_size=2)


def printed(shape: StudentShape, *, terminal: bool, width: int = 80) -> str:
    out = io.StringIO()
    color = "truecolor" if terminal else None
    console = Console(file=out, force_terminal=terminal, color_system=color, width=width)
    print_importance(IMPORTANCE, shape, model_type="bert", console=console)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 10])
def test_numbers_and_kept_units(width: int) -> None:
    shape = choose_shape(TEACHER, [0, 2], heads=2, ffn=1, width=6)
    lines = printed(shape, terminal=False, width=width).splitlines()
    assert lines[0] == "Importance of heads, by cosine loss on 64 blocks; the student keeps *"
    assert [line.split() for line in lines[1:5]] == [
        ["layer", "0", "1", "2", "3"],
        ["0", ".90*", ".30*", ".10", ".30"],  # of two alike the first
        ["1", "1.0", ".00", ".00", ".00"],  # the student has no such layer
        ["2", ".10", ".20", ".30*", ".93*"],
    ]
    assert lines[5:] == [
        "Kept: 1 of 2 feed-forward neurons per layer, with 75%, 100% of their importance",
        "Kept: 6 of 8 dimensions, with 92% of their importance",
    ]


def test_units_without_any_importance() -> None:
    nothing = replace(
        IMPORTANCE,
        heads=torch.zeros_like(IMPORTANCE.heads),
        neurons=torch.zeros_like(IMPORTANCE.neurons),
    )
    out = io.StringIO()
    shape = choose_shape(TEACHER, [0, 2], ffn=1)
    print_importance(nothing, shape, model_type="bert", console=Console(file=out, width=80))
    assert out.getvalue().splitlines()[-1].endswith("with 0%, 0% of their importance")


def test_no_summary_of_whole_parts() -> None:
    lines = printed(choose_shape(TEACHER, "all"), terminal=False).splitlines()
    assert len(lines) == 5
    assert lines[2].count("*") == 4


def test_colours_follow_importance_within_a_layer() -> None:
    text = printed(choose_shape(TEACHER, "all"), terminal=True)
    row = text.splitlines()[3]  # 1.0, 0, 0, 0
    backgrounds = re.findall(r"48;2;(\d+);(\d+);(\d+)m", row)
    assert backgrounds == [("255", "255", "255"), *[("0", "0", "0")] * 3]
    first = re.findall(r"48;2;(\d+);\d+;\d+m", text.splitlines()[2])
    assert int(first[0]) > int(first[1]) == int(first[3]) > int(first[2])
