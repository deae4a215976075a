"""Pages in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from spacy_distil.report.page import Page, render, sort_key
from spacy_distil.tables import Table
from tests.report.browser import find_browser, measure_page, run_browser
from tests.report.pages import make_comparison_page
from tests.report.stock_pipelines import Trained

BROWSER = find_browser()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the PATH"),
]


@pytest.fixture(scope="module")
def page(trained: Trained) -> str:
    pipelines = {"teacher": trained.full, "student": trained.seed, "<i>small</i>": trained.partial}
    verdicts = ["40 documents are too few to tell apart in NER F: teacher and student."]
    return render(
        make_comparison_page(pipelines, trained.test, teacher="teacher", verdicts=verdicts)
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_a_comparison_page(page: str, tmp_path: Path, width: int, dark: bool) -> None:
    assert BROWSER is not None
    seen = measure_page(BROWSER, page, tmp_path, width=width, dark=dark)
    assert seen["console"] == []
    assert (seen["width"], seen["dark"]) == (width, dark)
    assert seen["scrollWidth"] <= width, "the page scrolls sideways"
    assert (seen["scrolling"] > 0) == (width == 400), "wide tables scroll by themselves"
    kinds = {"svg", "mark", "a", "th", "td", ".warnings", "code", "p", "h1", "h2", "h3"}
    assert kinds <= set(seen["contrast"])
    assert min(seen["contrast"].values()) >= 4.5, seen["contrast"]
    for column in (column for table in seen["sorting"] for column in table):
        assert column["focused"]
        assert column["others"] == 1
    (words,) = (column for column in seen["sorting"][2] if column["header"] == "words/s")
    keys = [[sort_key(cell) for cell in click["cells"]] for click in words["clicks"]]
    assert keys == [[25_000, 13_000, 5_000], [5_000, 13_000, 25_000]]


def test_the_page_allows_its_own_script(page: str, tmp_path: Path) -> None:
    assert BROWSER is not None
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    dom, console = run_browser(BROWSER, tmp_path / "page.html")
    assert console == []
    assert '<button type="button">words/s</button>' in dom


def test_sorting(tmp_path: Path) -> None:
    assert BROWSER is not None
    cells = {
        "b": "28,083 (27,000\N{EN DASH}29,000)",
        "item 10": "\N{EN DASH}",
        "c": "1.2 M",
        "item 9": "96.4 \N{PLUS-MINUS SIGN} 0.1 [95.9, 96.8]",
        "a": "96.4",
        "d": "\N{EN DASH}",
    }
    table = Table("A table", ["name", "number"], [list(row) for row in cells.items()])
    seen = measure_page(BROWSER, render(Page("A page", [table])), tmp_path, width=800, dark=False)
    ((names, numbers),) = seen["sorting"]
    assert [click["order"] for click in names["clicks"]] == ["ascending", "descending"]
    by_name = ["a", "b", "c", "d", "item 9", "item 10"]
    assert [click["names"] for click in names["clicks"]] == [by_name, by_name[::-1]]
    # Equal ones stay in their order, and missing ones at the end.
    assert [click["order"] for click in numbers["clicks"]] == ["descending", "ascending"]
    assert [click["names"] for click in numbers["clicks"]] == [
        ["c", "b", "item 9", "a", "item 10", "d"],
        ["item 9", "a", "b", "c", "item 10", "d"],
    ]
