"""Sections of a Markdown file that the tables of a comparison replace."""

from __future__ import annotations

from pathlib import Path

from spacy_distil.errors import ConfigError
from spacy_distil.runs.files import write_text


def check_section(file: Path, section: str) -> None:
    """Raise ConfigError if `file` lacks the markers of the section."""
    _find_section(file, section)


def replace_section(file: Path, section: str, markdown: str) -> None:
    """Replace the text between the markers of a section. The markers stay.

    file: has `<!-- SECTION:start -->` and, after it, `<!-- SECTION:end -->`, once each.
    """
    text, start, end = _find_section(file, section)
    write_text(file, f"{text[:start]}\n{markdown.strip()}\n{text[end:]}")


def _find_section(file: Path, section: str) -> tuple[str, int, int]:
    """Find a section. RETURNS: the text of the file, and the start and end of the section."""
    first, last = f"<!-- {section}:start -->", f"<!-- {section}:end -->"
    if not file.is_file():
        raise ConfigError(f"No file {file} to put the tables into. Create it with {first} {last}.")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not a Markdown file in UTF-8: {error}.") from error
    if text.count(first) != 1 or text.count(last) != 1 or text.index(first) > text.index(last):
        raise ConfigError(
            f"{file}: expected {first} and, after it, {last}, once each, around the place of the "
            f"tables; found {text.count(first)} and {text.count(last)}. Add them."
        )
    return text, text.index(first) + len(first), text.index(last)
