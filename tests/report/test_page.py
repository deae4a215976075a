from __future__ import annotations

import re
from pathlib import Path

import pytest
from markupsafe import Markup as Html

from spacy_distil.report.page import (
    Commands,
    Figures,
    Group,
    Matrix,
    Page,
    Prose,
    SideBySide,
    Warnings,
    is_numeric,
    render,
    sort_key,
    write_page,
)
from spacy_distil.report.plot import Point, make_score_figure
from spacy_distil.report.scores import COLUMNS
from spacy_distil.report.speed import Spread
from spacy_distil.tables import Table
from tests.report.markup import Markup

EVIL = "<script>alert(1)</script>&\"'"


def make_figure(name: str = "a") -> object:
    points = [
        Point(name, Spread(100, 90, 110), 90.0, (89, 91)),
        Point("other", Spread(300, 200, 400), 80.0, (79, 81)),
    ]
    return make_score_figure({COLUMNS[0]: points}, [name, "other"])


def make_page(text: str = "text") -> Page:
    """A page with all kinds of blocks, and a text wherever one can stand."""
    table = Table(text, [text, f"{text} 2"], [[text, "1,000 [1, 2]"], ["b", "\N{EN DASH}"]])
    return Page(
        title=text,
        lead=text,
        blocks=[
            Warnings([text, "another"]),
            table,
            Figures(text, {text: make_figure(text), "second": make_figure(text)}, note=text),
            Group(text, [Matrix(text, [text, "b"], [[3, 1], [0, 2000]], note=text)], note=text),
            Group(
                text,
                [SideBySide(text, {text: Html("<p>as it is</p>")}, table, note=text)],
                is_open=False,
            ),
            Prose(text, f"{text}\n\n`{text}` {text}"),
            Commands([text]),
        ],
    )


def test_everything_is_escaped() -> None:
    plain, evil = Markup(render(make_page())), Markup(render(make_page(EVIL)))
    assert [tag for tag, _ in evil.elements] == [tag for tag, _ in plain.elements]
    assert evil.count("script") == 1
    assert evil.text.count(EVIL) + sum(EVIL in v for v in evil.values("aria-label")) > 20
    assert "as it is" in evil.texts


def test_ids_are_unique_and_references_have_a_target() -> None:
    html = render(make_page())
    page = Markup(html)
    ids = page.values("id")
    assert len(ids) > 50
    assert len(set(ids)) == len(ids)
    inside = [href.removeprefix("#") for href in page.values("href") if href.startswith("#")]
    assert len(inside) > 10
    assert {*inside, *re.findall(r"url\(#([^)]+)\)", html)} <= set(ids)


def test_nothing_is_loaded() -> None:
    html = render(make_page())
    page = Markup(html)
    assert not page.values("src")
    assert all(href.startswith("#") for href in page.values("href"))
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert page.count("link") == 0


def test_structure() -> None:
    page = Markup(render(make_page()))
    names = [tag for tag, _ in page.elements]
    assert names.count("h1") == names.count("main") == names.count("nav") == 1
    # The warnings have no heading.
    assert page.count("h2") == len(make_page().blocks) - 1
    assert len([href for href in page.values("href") if re.fullmatch(r"#block-\d", href)]) == 6
    assert [("open" in attrs) for tag, attrs in page.elements if tag == "details"] == [True, False]
    images = [attrs for tag, attrs in page.elements if tag == "svg"]
    assert [(each["role"], each["aria-label"]) for each in images] == [
        ("img", "text"),
        ("img", "second"),
    ]
    # Everything that scrolls can be reached with the keyboard.
    scrolling = [attrs for _, attrs in page.elements if attrs.get("class") == "scroll"]
    assert len(scrolling) == 3
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in scrolling)


def test_blocks_without_content_are_left_out() -> None:
    blocks = [Warnings([]), Commands([""]), Figures("a", {}), Group("b", []), Table("c", ["d"], [])]
    assert Markup(render(Page("title", blocks))).texts == ["title", "title"]


def test_a_page_is_the_same_every_time(tmp_path: Path) -> None:
    write_page(make_page(), tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == render(make_page())


def test_figures_take_the_colours_of_the_page() -> None:
    html = render(Page("title", [Figures("a", {"label": make_figure()})]))
    figure = html[html.index("<svg") : html.index("</svg>")]
    assert "currentColor" in figure
    assert not re.search(r"#000000|#ffffff|#e6e6e6|font-family|<style|<metadata", figure)
    assert "other</text>" in figure, "texts stay texts"


@pytest.mark.parametrize(
    ("cell", "key"),
    [
        ("28,083 (27,000\N{EN DASH}29,000)", 28_083),
        ("96.4 \N{PLUS-MINUS SIGN} 0.1 [95.9, 96.8]", 96.4),
        ("1.2 M", 1.2e6),
        ("1.2 MB", 1.2),
        ("  7", 7),
        ("-0.5", -0.5),
        ("\N{MINUS SIGN}0.5", -0.5),
        ("+3", 3),
        ("1e-05", 1e-5),
        ("0", 0),
        ("100.00", 100),
        ("\N{EN DASH}", None),
        ("", None),
        ("student (3 seeds)", None),
        ("NER", None),
    ],
)
def test_cells_sort_by_their_first_number(cell: str, key: float | None) -> None:
    assert sort_key(cell) == key


def test_a_column_of_numbers_has_nothing_else() -> None:
    rows = [["2 layers", "1", "\N{EN DASH}", "1"], ["CNN", "\N{EN DASH}", "", "x"]]
    table = Table("", ["name", "numbers", "nothing", "mixed"], rows)
    assert [is_numeric(table, i) for i in range(4)] == [False, True, False, False]


def test_heat_of_a_matrix() -> None:
    matrix = Matrix("", ["a", "b"], [[75, 25], [4, 0]])
    # The diagonal is a share of the row, errors are relative to the most frequent one.
    assert [matrix.heat(i, j) for i in range(2) for j in range(2)] == [75, 100, 40, 0]
    assert Matrix("", ["a"], [[0]]).heat(0, 0) == 0
