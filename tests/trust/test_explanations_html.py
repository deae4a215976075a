"""Explanations as HTML and in the terminal, and the command."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import spacy
from spacy.tokens import Doc, DocBin
from typer.testing import CliRunner

from spacy_distil.cli import distil_cli
from spacy_distil.trust.explanations.explanation import Explanation, Explanations
from spacy_distil.trust.explanations.html import AGAINST, FOR, to_page, visible
from spacy_distil.trust.explanations.targets import Target
from spacy_distil.trust.explanations.terminal import to_text

WORDS = ["<script>", "alert('&')", "\n ", "\u0633\u0644\u0627\u0645", "\x07\x1b[31m", '"', "ok"]


def make(words: list[str] = WORDS, *, start: int = 0, end: int = 0) -> Explanation:
    doc = Doc(spacy.blank("xx").vocab, words, [True, False, False, True, True, True, False])
    target = Target("textcat", "<b>&", "cats:<b>&", start, end, (0,), (0,))
    values = np.array([1.0, -0.5, 0.0, 0.25, -0.1, 0.0, 0.5])
    return Explanation(doc, target, 2.0, values, "occlusion")


class Reader(HTMLParser):
    """Collects tags, the styles of tokens, and the text of the last block."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.styles: dict[str, str] = {}
        self.text = ""
        self._style = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self._style = (values.get("style") or "") if tag == "span" else ""
        if values.get("dir") == "auto":
            assert "white-space: pre-wrap" in str(values["style"])
            self.text = ""

    def handle_endtag(self, tag: str) -> None:
        self._style = ""

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._style:
            self.styles[data] = self._style


def test_the_text_survives() -> None:
    """It is escaped, and control characters become pictures."""
    explanation = make()
    html = explanation.to_html()
    assert html == explanation._repr_html_()
    read = Reader(html)
    assert set(read.tags) == {"div", "span"}
    expected = explanation.doc.text.replace("\x07", "\u2407").replace("\x1b", "\u241b")
    assert read.text == expected
    assert "cats:&lt;b&gt;&amp;" in html
    assert "p = 0.881" in html


def test_colours_say_sign_and_size() -> None:
    read = Reader(make().to_html())
    assert f"rgba({FOR}, 0.600)" in read.styles["<script>"]
    assert f"rgba({AGAINST}, 0.300)" in read.styles["alert('&')"]
    assert f"rgba({FOR}, 0.150)" in read.styles["\u0633\u0644\u0627\u0645"]
    assert '"' not in read.styles
    # What is explained has an outline.
    read = Reader(make(start=5, end=6).to_html())
    assert "outline" in read.styles['"']
    assert sum("outline" in style for style in read.styles.values()) == 1


def luminance(colour: list[float]) -> float:
    """Of red, green and blue, 0 to 255, as WCAG 2 defines it."""
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_the_strongest_colours_are_readable_in_light_and_dark() -> None:
    themes = re.findall(r"color: (#\w+); background: (#\w+);", to_page("", []))
    assert len(themes) == 2
    for pair in themes:
        text, behind = (
            [int(c, 16) for c in re.findall("..", code[1:].ljust(6, code[-1]))] for code in pair
        )
        for colour in (FOR, AGAINST):
            mixed = [
                0.6 * int(own) + 0.4 * other
                for own, other in zip(colour.split(","), behind, strict=True)
            ]
            low, high = sorted((luminance(text), luminance(mixed)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (pair, colour)


def test_no_attribution_at_all() -> None:
    doc = Doc(spacy.blank("xx").vocab, [" "], [False])
    target = Target("textcat", "a", "cats:a", 0, 0, (0,), (0,))
    nothing = Explanation(doc, target, 0.0, np.zeros(1), "occlusion")
    assert Reader(nothing.to_html()).text == " "
    assert "No token counts." in to_text(nothing)


def test_a_page() -> None:
    docs = [("Document 1", [make(), make()]), ("Document 2", []), ("<3>", Explanations([make()]))]
    page = to_page("Explanations of <x>", docs)
    read = Reader(page)
    assert read.tags.count("section") == 2
    assert page.count("&lt;script&gt;") == 3
    assert "<h2>Document 1</h2>" in page
    assert "Document 2" not in page, "there is nothing to see"
    assert "&lt;3&gt;" in page
    assert "<title>Explanations of &lt;x&gt;</title>" in page
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page
    # It needs no other file.
    assert not {"script", "link", "img"} & set(read.tags)
    assert "url(" not in page
    assert "http" not in page


def test_the_terminal() -> None:
    lines = to_text(make()).splitlines()
    assert lines[0] == "cats:<b>& (textcat): p = 0.881, occlusion"
    names = [line.split()[0] for line in lines[-5:]]
    # By size; those without an attribution are left out.
    assert names == ["<script>", "alert('&')", "ok", "\u0633\u0644\u0627\u0645", "\u2407\u241b[31m"]
    assert "\x1b[31m" not in "".join(lines)
    assert lines[-4].split()[1:] == ["1", "-0.500"]


# The command


def run(*arguments: object) -> str:
    result = CliRunner().invoke(distil_cli, ["explain", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def fail(*arguments: object) -> str:
    result = CliRunner().invoke(distil_cli, ["explain", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    return " ".join(result.output.split())


def test_the_command_prints(torch_pipeline: Path, onnx_pipeline: Path) -> None:
    text = "Ann visited Rome in spring ."
    out = run(torch_pipeline, "--text", text)
    assert "cats:travel (textcat): p = " in out
    assert "integrated_gradients" in out
    assert "occlusion" in run(onnx_pipeline, "--text", text)
    out = run(torch_pipeline, "--text", text, "--target", "tag:Rome", "--method", "occlusion")
    assert "Rome = NNP (tagger): p = " in out
    assert "occlusion" in out


def test_the_command_writes_a_page(torch_pipeline: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("Ann visited <b>Rome</b> .\nWe like pizza .\nWe like Oslo .\n")
    out = run(torch_pipeline, "--texts", texts, "--limit", 2, "--output", tmp_path / "page.html")
    assert "Saved the explanations to" in out
    page = (tmp_path / "page.html").read_text(encoding="utf8")
    read = Reader(page)
    assert read.tags.count("section") == 2
    assert "b" not in read.tags
    assert "pizza" in page
    assert "Oslo" not in page
    nlp = spacy.load(torch_pipeline)
    DocBin(docs=[nlp.make_doc("We like Oslo .")]).to_disk(tmp_path / "docs.spacy")
    run(torch_pipeline, "--texts", tmp_path / "docs.spacy", "--output", tmp_path / "two.html")
    assert "Oslo" in (tmp_path / "two.html").read_text(encoding="utf8")


def test_documents_that_cannot_be_explained_are_left_out(
    torch_pipeline: Path, tmp_path: Path
) -> None:
    texts, page = tmp_path / "texts.txt", tmp_path / "page.html"
    texts.write_text("Ann visited Rome .\nWe like pizza .\nWe like Rome .\n")
    out = run(torch_pipeline, "--texts", texts, "--target", "tag:Rome", "--output", page)
    assert "Document 2 is left out. target = 'tag:Rome': no token" in " ".join(out.split())
    html = page.read_text(encoding="utf8")
    assert [f"<h2>Document {i}</h2>" in html for i in (1, 2, 3)] == [True, False, True]
    printed = run(torch_pipeline, "--texts", texts, "--target", "tag:Rome")
    assert "Document 1\n" in printed
    assert "Document 3\n" in printed
    page.unlink()
    fail(torch_pipeline, "--texts", texts, "--target", "tag:Oslo", "--output", page)
    assert not page.exists()
    # What is wrong with all of them is said once.
    assert "no such label" in fail(torch_pipeline, "--texts", texts, "--target", "cats:none")


def test_controls_are_pictures() -> None:
    assert visible("a\x00\x1b[1m\x7f\x9b\u202eb\u2066\n") == "a␀␛[1m␡␦␦b␦\n"


def test_mistakes_of_the_command(torch_pipeline: Path, tmp_path: Path) -> None:
    assert "Name the text with --text, or a file" in fail(torch_pipeline)
    both = fail(torch_pipeline, "--text", "a", "--texts", tmp_path / "texts.txt")
    assert "Name the text with --text, or a file" in both
    assert "no such label. Labels: " in fail(torch_pipeline, "--text", "a", "--target", "cats:x")
    (tmp_path / "file").write_text("")
    message = fail(torch_pipeline, "--text", "a", "--output", tmp_path / "file" / "page.html")
    assert "Not a directory" in message
    assert "No documents at" in fail(torch_pipeline, "--texts", tmp_path / "nowhere.txt")


@pytest.mark.parametrize("target", ["tag", "pos:0"])
def test_an_empty_text(torch_pipeline: Path, target: str) -> None:
    if target == "tag":
        out = run(torch_pipeline, "--text", "", "--target", target)
        assert "nothing to explain" in " ".join(out.split())
    else:
        assert "no pipe for 'pos'" in fail(torch_pipeline, "--text", "", "--target", target)
