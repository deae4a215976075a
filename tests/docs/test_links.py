"""Links of the pages lead somewhere, and the README survives on a package index."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import PAGES, ROOT, prose_of

OTHERS = ("CHANGELOG.md", "corpus/README.md", "benchmarks/README.md", "benchmarks/peers.md")
# weasel writes this link for a file in the project's root.
GENERATED = {("docs/project.md", "project.yml")}


def links_of(page: str) -> list[tuple[str, str]]:
    """Read the (text, target) of each link and image of a page."""
    return re.findall(r"\[([^\[\]]*)\]\(([^)\s]+)\)", prose_of(page))


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for _, target in links_of(page):
        if re.match(r"https?://", target) or (page, target) in GENERATED:
            continue
        file, _, heading = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{page}: {target}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert heading in anchors, f"{page}: {target}"


def test_the_readme_names_the_files_that_it_links() -> None:
    """On a package index a relative link is dead; its text still says which file to read."""
    for text, target in links_of("README.md"):
        file = target.partition("#")[0]
        assert re.match(r"https?://", target) or file in text, f"[{text}]({target})"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf8")) <= 9_000


def test_every_page_is_on_the_start_page() -> None:
    linked = {target.partition("#")[0] for _, target in links_of("docs/README.md")}
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= linked


def test_files_that_benchmarks_name_are_there() -> None:
    """In backticks: code, configs and results, by their paths from here or from the benchmarks."""
    folder = ROOT / "benchmarks"
    named = set(re.findall(r"`([\w./-]+\.(?:cfg|json|md|py))`", prose_of("benchmarks/README.md")))
    assert {"configs/train.cfg", "memory/results/memory.md", "run_anywhere/rows.py"} <= named
    folders = (ROOT, folder)
    assert not {name for name in named if not any((each / name).exists() for each in folders)}
