"""Format tables as Markdown, and as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from wasabi import table as wasabi_table


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    title: its heading.
    header: names of the columns. The first column holds the names of the rows.
    rows: cells of each row.
    """

    title: str
    header: list[str]
    rows: list[list[str]]

    def to_text(self) -> str:
        """Format for the terminal, with names aligned left and numbers right."""
        aligns: list[Literal["l", "r"]] = ["r"] * len(self.header)
        aligns[0] = "l"
        text = wasabi_table(self.rows, header=self.header, divider=True, aligns=aligns)
        return f"{self.title}\n{text}"

    def to_markdown(self) -> str:
        lines = [f"**{self.title}**", ""]
        lines.append(_line(self.header))
        lines.append("|---|" + "---:|" * (len(self.header) - 1))
        lines += [_line(row) for row in self.rows]
        return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def megabytes_cell(n_bytes: float) -> str:
    """Format a size without its unit, which stands in the header of the table: "1,234.5"."""
    return f"{n_bytes / 1e6:,.1f}"


def megabytes(n_bytes: int) -> str:
    """Format a size in megabytes of a million bytes: "1,234.5 MB"."""
    return f"{megabytes_cell(n_bytes)} MB"
