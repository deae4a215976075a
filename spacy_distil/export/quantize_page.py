"""The results of `quantize` as an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spacy_distil.export import agreement_table
from spacy_distil.export.quantize import Quantization
from spacy_distil.export.quantize_table import describe, make_tables
from spacy_distil.report.machine import command_line
from spacy_distil.report.page import Commands, Figures, Page, Prose, Warnings
from spacy_distil.report.plot import COLOURS, make_figure


def make_page(result: Quantization, *, pipeline: str, warnings: Sequence[str]) -> Page:
    """Make the page: agreement, scores, speed, and the error of each layer if layers were chosen.

    pipeline: path or package of the original.
    """
    figures = {
        f"Error of the token vectors of {name} by layer": draw_sensitivity(result, name)
        for name, errors in result.sensitivity.items()
        if errors
    }
    return Page(
        title=f"{Path(pipeline).name} in {result.precision}",
        lead=describe(result),
        blocks=[
            Warnings(warnings),
            *agreement_table.make_tables(result.agreement),
            *make_tables(result),
            Figures(
                "Error with one layer in int8",
                figures,
                "Relative error of the token vectors. The layers with the largest errors stay in "
                "float32.",
            ),
            Prose("How this was measured", agreement_table.describe(result.agreement)),
            Commands([command_line()]),
        ],
    )


def draw_sensitivity(result: Quantization, encoder: str) -> Any:
    """Plot the error that each layer of an encoder causes. RETURNS: a figure of matplotlib."""
    figure, (axes, *_) = make_figure(1, title="")
    errors, fp32 = result.sensitivity[encoder], result.fp32_layers[encoder]
    for name, colour, layers in (
        ("int8", COLOURS[0], [i for i in range(len(errors)) if i not in fp32]),
        ("fp32", COLOURS[1], fp32),
    ):
        axes.bar(layers, [errors[i] for i in layers], color=colour, label=name)
    axes.set_xticks(range(len(errors)))
    axes.set_xlabel("layer", fontsize=9)
    axes.set_ylabel("relative error", fontsize=9)
    axes.set_title(encoder, fontsize=10, parse_math=False)
    axes.legend(title="in the result", title_fontsize=8, fontsize=8, frameon=False)
    return figure
