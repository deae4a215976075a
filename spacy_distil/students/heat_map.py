"""Print importance in the terminal: a heat map of attention heads, with a number in each cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from spacy_distil.students.importance import Importance
from spacy_distil.students.pruning import choose_units
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
    """Print a heat map of the heads, and how much importance the student keeps in other units.

    shape: of the student. model_type: family. console: `None` is the terminal.
    """
    console = console or Console()
    kept = choose_units(model_type, shape, importance)
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
        shares = _kept_shares(importance.neurons[list(shape.layers)], shape.ffn)
        units = "feed-forward neurons per layer"
        lines.append(_summary(shape.ffn, shape.teacher.ffn, units, shares))
    if "width" in shape.cuts:
        shares = _kept_shares(importance.dims[None], shape.width)
        lines.append(_summary(shape.width, shape.teacher.width, "dimensions", shares))
    for line in lines:
        console.print(line, soft_wrap=True)  # do not break a wide map in a pipe


def _heat_row(layer: int, row: Sequence[float], kept: Sequence[int]) -> Text:
    text = Text(f"{layer:>5} ")
    highest = max(row) or 1.0
    for head, value in enumerate(row):
        number = f"{value:.2f}".removeprefix("0")[:3]
        text.append(f" {number}{'*' if head in kept else ' '}", style=_style(value / highest))
    return text


def _style(heat: float) -> str:
    """Mix the colours of a cell. heat: from 0 to 1."""
    position = heat * (len(_COLOURS) - 1)
    low = min(int(position), len(_COLOURS) - 2)
    channels = zip(_COLOURS[low], _COLOURS[low + 1], strict=True)
    red, green, blue = (round(a + (b - a) * (position - low)) for a, b in channels)
    foreground = "black" if red + 2 * green > 380 else "white"
    return f"{foreground} on rgb({red},{green},{blue})"


def _kept_shares(importance: Tensor, count: int) -> list[float]:
    """Compute the share of each row's importance in its `count` most important units."""
    kept = importance.topk(count, dim=-1).values.sum(dim=-1)
    # The minimum avoids 0 / 0 in rows without any importance.
    total = importance.sum(dim=-1).clamp(min=torch.finfo(importance.dtype).tiny)
    shares: list[float] = (kept / total).tolist()
    return shares


def _summary(kept: int, available: int, units: str, shares: Sequence[float]) -> Text:
    percents = ", ".join(f"{share:.0%}" for share in shares)
    return Text(f"Kept: {kept:,} of {available:,} {units}, with {percents} of their importance")
