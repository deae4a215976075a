"""Cells of result tables."""

from __future__ import annotations

from spacy_distil.report.layout import with_range
from spacy_distil.report.speed import Spread


def verdict(met: bool | None) -> str:
    """Whether a target is met; empty if that is not known."""
    return "" if met is None else "yes" if met else "no"


def rate(spread: Spread) -> str:
    """Words/s or pieces/s, with the range."""
    return with_range(spread, "{:,.0f}")


def ratio(spread: Spread) -> str:
    """A ratio of two rates, with the range."""
    return with_range(spread, "{:.2f}")


def scaled(spread: Spread, factor: float) -> Spread:
    """A spread in another unit."""
    return Spread(spread.median * factor, spread.min * factor, spread.max * factor)
