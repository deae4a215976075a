"""Tables of compared rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from benchmarks.common.comparison import ComparedRow, Difference, RowGain
from spacy_distil.report.layout import MISSING
from spacy_distil.report.scores import Column
from spacy_distil.tables import Table

MINUS = "\N{MINUS SIGN}"

T = TypeVar("T")


def cell(value: T | None, column: Column, form: Callable[[T, int], str]) -> str:
    """form: makes a text of a value and a number of decimals."""
    return MISSING if value is None else form(value, column.decimals)


def first_cells(row: ComparedRow) -> list[str]:
    """The cells before the scores: name and title, number of seeds, parameters."""
    name = row.name if row.name == row.title else f"{row.name}: {row.title}"
    return [name, str(len(row.pipelines)), f"{row.n_parameters / 1e6:,.1f} M"]


def make_gain_table(gains: Sequence[RowGain], columns: Sequence[Column]) -> Table:
    return Table(
        "Gain of each step: score minus the score of the row before, in points",
        ["rows", *(column.title for column in columns)],
        [
            [
                f"{gain.row} {MINUS} {gain.before}",
                *(cell(gain.differences.get(c.key), c, points) for c in columns),
            ]
            for gain in gains
        ],
    )


def points(difference: Difference, decimals: int) -> str:
    """A difference in points, with sign and interval."""
    value, low, high = (
        # Adding 0.0 removes the sign of a negative zero.
        f"{round(number * 100, decimals) + 0.0:+.{decimals}f}".replace("-", MINUS)
        for number in (difference.value, *difference.interval)
    )
    return f"{value} [{low}, {high}]"


def percent(mean: float, std: float | None, decimals: int) -> str:
    """A score in %, and its standard deviation over seeds."""
    spread = "" if std is None else f" ± {std * 100:.{decimals}f}"
    return f"{mean * 100:.{decimals}f}{spread}"
