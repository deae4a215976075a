"""Importance for the terminal: colours where there are any, numbers everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from spacy_distil.students.importance import Importance
from spacy_distil.students.pruning import choose_kept
from spacy_distil.students.shapes import StudentShape

# Backgrounds from unimportant to important: black, red, yellow, white.
_COLOURS = ((0, 0, 0), (190, 30, 30), (245, 190, 50), (255, 255, 255))


def print_importance(
    importance: Importance,
    shape: StudentShape,
    *,
    model_type: str,
    console: Console | None = None,
) -> None:
    """Print a heat map of the heads and what the student keeps of the rest.

    shape: of the student. model_type: the family. console: `None` is the terminal.
    """
    console = console or Console()
    kept = choose_kept(model_type, shape, importance)
    kept_heads = dict(zip(shape.layers, kept.heads.tolist(), strict=True))
    lines = [
        Text(
            f"Importance of heads, by {importance.loss_kind} loss on {importance.blocks} blocks; "
            f"the student keeps *"
        ),
        Text("layer " + "".join(f"{head:>4} " for head in range(shape.teacher.heads))),
    ]
    for layer, row in enumerate(importance.heads.tolist()):
        lines.append(_heat_row(layer, row, kept_heads.get(layer, [])))
    if "ffn" in shape.cuts:
        shares = _shares(importance.neurons[list(shape.layers)], shape.ffn)
        lines.append(_summary(shape.ffn, shape.teacher.ffn, "neurons of a layer", shares))
    if "width" in shape.cuts:
        shares = _shares(importance.dims[None], shape.width)
        lines.append(_summary(shape.width, shape.teacher.width, "dimensions", shares))
    for line in lines:
        console.print(line, soft_wrap=True)  # a wide map stays whole where it is piped


def _heat_row(layer: int, row: Sequence[float], kept: Sequence[int]) -> Text:
    text = Text(f"{layer:>5} ")
    highest = max(row) or 1.0
    for head, value in enumerate(row):
        number = f"{value:.2f}".removeprefix("0")[:3]
        text.append(f" {number}{'*' if head in kept else ' '}", style=_style(value / highest))
    return text


def _style(heat: float) -> str:
    """heat: from 0 to 1."""
    place = heat * (len(_COLOURS) - 1)
    low = min(int(place), len(_COLOURS) - 2)
    pairs = zip(_COLOURS[low], _COLOURS[low + 1], strict=True)
    red, green, blue = (round(a + (b - a) * (place - low)) for a, b in pairs)
    foreground = "black" if red + 2 * green > 380 else "white"
    return f"{foreground} on rgb({red},{green},{blue})"


def _shares(importance: Tensor, count: int) -> list[float]:
    """How much of all importance the most important have, row by row."""
    best = importance.topk(count, dim=-1).values.sum(dim=-1)
    # Where nothing has any importance, the best have none of it.
    whole = importance.sum(dim=-1).clamp(min=torch.finfo(importance.dtype).tiny)
    shares: list[float] = (best / whole).tolist()
    return shares


def _summary(kept: int, available: int, what: str, shares: Sequence[float]) -> Text:
    percents = ", ".join(f"{share:.0%}" for share in shares)
    return Text(f"The student's {kept} of {available} {what} have of their importance: {percents}")
