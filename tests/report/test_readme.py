from __future__ import annotations

from pathlib import Path

import pytest

from spacy_distil.errors import ConfigError
from spacy_distil.report.readme import check_section, replace_section


def test_section_is_replaced_between_its_markers(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("a\n<!-- x:start -->\nold\n<!-- x:end -->\nb <!-- y:start --><!-- y:end -->\n")
    replace_section(file, "x", "first\n")
    replace_section(file, "x", "new\n")
    assert file.read_text() == (
        "a\n<!-- x:start -->\nnew\n<!-- x:end -->\nb <!-- y:start --><!-- y:end -->\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        "no markers",
        "<!-- x:start -->",
        "<!-- x:end --> <!-- x:start -->",
        "<!-- x:start --> <!-- x:start --> <!-- x:end -->",
    ],
)
def test_markers_that_do_not_fit(tmp_path: Path, text: str) -> None:
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(ConfigError, match="expected <!-- x:start --> and, after it, <!-- x:end"):
        replace_section(file, "x", "new")
    assert file.read_text() == text


def test_no_file_to_replace_in(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No file .*README\.md"):
        check_section(tmp_path / "README.md", "x")
