"""The pages: their blocks of code, and their tables."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPONENT = "docs/component.md"
ENCODER = "docs/encoder-distillation.md"
PIPELINE = "docs/pipeline-distillation.md"
BUDGET = "docs/budget.md"
VECTORS = "docs/vectors.md"
TWO_TEXTS = "docs/pairs.md"
ANSWERS = "docs/answers.md"
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
# Pages whose sections stand alone: each runs in a directory of its own.
SECTIONED = ("README.md", "docs/recipes.md")

FENCED = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    section: number of the heading above it; 0 for all of a page whose blocks belong together.
    line: line of the page before the first line of the code.
    """

    page: str
    section: int
    line: int
    language: str
    code: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str) -> list[Block]:
    """Read the blocks of a page, in its order."""
    text = (ROOT / page).read_text(encoding="utf8")
    blocks = []
    for match in FENCED.finditer(text):
        before = text[: match.start()]
        section = len(re.findall(r"^## ", before, re.MULTILINE)) if page in SECTIONED else 0
        blocks.append(Block(page, section, before.count("\n") + 1, match[1], match[2]))
    return blocks


def prose_of(page: str) -> str:
    """Read a page without its blocks."""
    return re.sub(FENCED, "", (ROOT / page).read_text(encoding="utf8"))


def table_after(text: str, page: str = COMPONENT) -> list[list[str]]:
    """Read the cells of the first table after a text, without its header."""
    _, match, rest = (ROOT / page).read_text(encoding="utf8").partition(text)
    assert match, text
    table = re.search(r"(?:^\|.*\n)+", rest, re.MULTILINE)
    assert table is not None, text
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]
    ]


def in_backticks(cells: Collection[str]) -> list[str]:
    """Return what stands in backticks, in order."""
    return re.findall(r"`([^`]+)`", " ".join(cells))
