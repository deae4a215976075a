"""A measurement as one HTML page: a file that needs no network, no fonts and no other file.

A page is a title and blocks. It escapes whatever it is given, except `Markup`.

    page = Page(
        title="Calibration of model-best",
        lead="dev.spacy, 318 documents",
        blocks=[
            Warnings(["..."]),
            table,  # a `spacy_distil.tables.Table`
            Figures("Reliability", {"ner": figure}, note="..."),
            Prose("How this was measured", "..."),
            Commands([command_line()]),
        ],
    )
    write_page(page, output / "calibrate.html")
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from spacy_distil.report.svg import to_svg
from spacy_distil.runs.files import write_text
from spacy_distil.tables import Table

_TEMPLATES = Path(__file__).parent / "templates"
_NUMBER = re.compile(r"([+\-\N{MINUS SIGN}]?)(\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)( M\b)?")
_MISSING = ("", "\N{EN DASH}")


@dataclass(frozen=True)
class Warnings:
    """Lines that nobody should miss."""

    title: ClassVar[str] = ""
    lines: Sequence[str]


@dataclass(frozen=True)
class Prose:
    """Paragraphs, divided by blank lines. `Backticks` surround code, as in Markdown."""

    title: str
    text: str

    @property
    def paragraphs(self) -> list[str]:
        return self.text.split("\n\n")


@dataclass(frozen=True)
class Commands:
    """Command lines that made the results. Empty ones are left out."""

    lines: Sequence[str]
    title: str = "Command line"


@dataclass(frozen=True)
class Figures:
    """Figures of matplotlib, one beside the other.

    figures: by a text that stands for them.
    """

    title: str
    figures: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class Matrix:
    """A table of counts: what is right on the diagonal, confusions beside it.

    labels: of the rows, which are the truth, and of the columns, which are predictions.
    counts: a row for each label.
    """

    title: str
    labels: Sequence[str]
    counts: Sequence[Sequence[int]]
    note: str = ""

    def heat(self, row: int, column: int) -> int:
        """How strong the colour of a cell is, 0 to 100."""
        count = self.counts[row][column]
        if row == column:
            largest = sum(self.counts[row])
            return round(100 * count / largest) if largest else 0
        largest = max(
            other for i, cells in enumerate(self.counts) for j, other in enumerate(cells) if i != j
        )
        # The root shows small counts beside a large one.
        return round(100 * sqrt(count / largest)) if largest else 0


@dataclass(frozen=True)
class SideBySide:
    """One document as several pipelines see it.

    columns: HTML by name of the pipeline.
    differences: what the columns differ in.
    """

    title: str
    columns: Mapping[str, Markup]
    differences: Table
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Blocks below one heading, which readers can open and close."""

    title: str
    blocks: Sequence[Matrix | SideBySide]
    note: str = ""
    is_open: bool = True


Block: TypeAlias = Table | Warnings | Prose | Commands | Figures | Matrix | SideBySide | Group


@dataclass(frozen=True)
class Page:
    """What an HTML page shows.

    lead: a line below the title.
    """

    title: str
    blocks: Sequence[Block] = field(default_factory=list)
    lead: str = ""


def write_page(page: Page, path: Path) -> None:
    """Write a page to an HTML file."""
    write_text(path, render(page))


def render(page: Page) -> str:
    """Render a page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "kind": lambda block: type(block).__name__,
        "code": _mark_code,
        "sort_key": sort_key,
        "split_number": _split_number,
        "svg": lambda figure, name, label: Markup(to_svg(figure, name=name, label=label)),
    }
    environment.tests["numeric"] = is_numeric
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    return environment.get_template("page.html.jinja").render(
        page=page,
        blocks=[block for block in page.blocks if not _is_empty(block)],
        style=Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # The browser runs this script only, even if a text should escape its escaping.
        script_digest=base64.b64encode(digest).decode(),
    )


def sort_key(cell: str) -> float | None:
    """The number that a cell of a table begins with; `None` if it does not begin with one.

    28083 for "28,083 (27,000-29,000)", 1200000 for "1.2 M".
    """
    match = _NUMBER.match(cell.strip())
    if match is None:
        return None
    sign, digits, million = match.groups()
    number = float(digits.replace(",", "")) * (1e6 if million else 1)
    return -number if sign in ("-", "\N{MINUS SIGN}") else number


def is_numeric(table: Table, column: int) -> bool:
    """Whether a column has numbers, and nothing else but missing values."""
    cells = [row[column] for row in table.rows]
    numbers = [cell for cell in cells if sort_key(cell) is not None]
    return bool(numbers) and all(cell in numbers or cell.strip() in _MISSING for cell in cells)


def _split_number(cell: str) -> tuple[str, str]:
    """Split a cell into its first number and the rest, such as an interval."""
    match = _NUMBER.match(cell)
    return (cell, "") if match is None else (cell[: match.end()], cell[match.end() :])


def _mark_code(text: str) -> Markup:
    parts = re.split(r"`([^`]+)`", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part)
        for i, part in enumerate(parts)
    )


def _is_empty(block: Block) -> bool:
    match block:
        case Warnings(lines) | Commands(lines):
            return not any(lines)
        case Figures(_, figures):
            return not figures
        case Group(_, blocks):
            return not blocks
        case Table(_, _, rows):
            return not rows
    return False
