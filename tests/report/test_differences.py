from __future__ import annotations

from collections.abc import Sequence

import pytest
import spacy
from spacy.tokens import Doc
from spacy.training import Example

from spacy_distil.report.differences import ANNOTATIONS, WHOLE, find_most_different
from spacy_distil.report.predictions import Predictions
from spacy_distil.report.side_by_side import (
    CONTEXT,
    LONGEST,
    MOST_DIFFERENCES,
    choose_ranges,
    render_entities,
    show_side_by_side,
)
from tests.report.markup import Markup

VOCAB = spacy.blank("en").vocab
CATEGORIES = {"labels": ["A", "B"], "threshold": None}
ALL = list(ANNOTATIONS.values())


def make_doc(
    words: Sequence[str],
    pos: Sequence[str] | None = None,
    ents: Sequence[str] | None = None,
    cats: dict[str, float] | None = None,
) -> Doc:
    doc = Doc(
        VOCAB,
        words=list(words),
        pos=None if pos is None else list(pos),
        ents=list(ents or ["O"] * len(words)),
    )
    doc.cats = cats or {}
    return doc


def predict(*docs: Doc, threshold: float | None = None) -> Predictions:
    categories = {**CATEGORIES, "threshold": threshold}
    return Predictions.of([Example(doc, doc) for doc in docs], categories)


def test_differences_by_hand() -> None:
    first = predict(
        make_doc(["Ada", "beat", "Alan"], ["PROPN", "VERB", "PROPN"], ["B-P", "O", "B-P"]),
        make_doc(["no", "difference"], ["DET", "NOUN"]),
        make_doc(["topic"], ["NOUN"], cats={"A": 0.6, "B": 0.4}),
    )
    second = predict(
        make_doc(["Ada", "beat", "Alan"], ["PROPN", "NOUN", "PROPN"], ["B-P", "O", "B-Q"]),
        make_doc(["no", "difference"], ["DET", "NOUN"]),
        make_doc(["topic"], ["NOUN"], cats={"A": 0.2, "B": 0.8}),
    )
    found = find_most_different(first, second, ALL)
    assert found.n_documents == 2
    assert {
        document.index: [(d.annotation.name, d.place, d.labels) for d in document.differences]
        for document in found.documents
    } == {
        0: [("UPOS", (4, 8), ("VERB", "NOUN")), ("entity", (9, 13), ("P", "Q"))],
        2: [("category", WHOLE, ("A", "B"))],
    }
    assert [document.docs[1].text for document in found.documents] == ["Ada beat Alan ", "topic "]


def test_annotations_weigh_the_same() -> None:
    """One category of one is more than four tags of eight."""
    words, nouns, verbs = ["a"] * 4, ["NOUN"] * 4, ["VERB"] * 4
    first = predict(
        make_doc(words, nouns), make_doc(words, nouns), make_doc(["a"], ["X"], cats={"A": 1.0})
    )
    second = predict(
        make_doc(words, verbs), make_doc(words, verbs), make_doc(["a"], ["X"], cats={"B": 1.0})
    )
    found = find_most_different(first, second, ALL)
    assert [document.index for document in found.documents] == [2, 0, 1]
    assert [d.index for d in find_most_different(first, second, ALL, n=1).documents] == [2]
    assert find_most_different(first, first, ALL).documents == []
    assert find_most_different(first, second, [ANNOTATIONS["ents_f"]]).n_documents == 0


def test_categories_over_a_threshold() -> None:
    first = predict(make_doc(["a"], cats={"A": 0.9, "B": 0.8}), threshold=0.5)
    second = predict(make_doc(["a"], cats={"A": 0.9, "B": 0.4}))
    (document,) = find_most_different(first, second, ALL).documents
    assert [each.labels for each in document.differences] == [("A, B", "A")]


def test_tokens_of_one_pipeline_alone_have_no_tags_to_differ() -> None:
    first = predict(make_doc(["can't"], ["AUX"]))
    docs = Doc(VOCAB, words=["ca", "n't"], spaces=[False, True], pos=["VERB", "PART"])
    assert find_most_different(first, predict(docs), ALL).documents == []


def test_scripts_in_documents_are_text() -> None:
    evil = "<script>alert(1)</script>"
    gold = make_doc([evil, "x"], ents=["B-<b>", "O"])
    (document,) = find_most_different(
        predict(make_doc([evil, "x"], ents=["B-<b>", "O"])),
        predict(make_doc([evil, "x"], ents=["O", "B-<i>"])),
        ALL,
    ).documents
    block = show_side_by_side(document, gold, ("one", "two"), CATEGORIES)
    html = "".join(block.columns.values())
    page = Markup(html)
    assert {tag for tag, _ in page.elements} == {"div", "mark", "span"}
    assert page.texts == [evil, "<b>", "x", evil, "x", "<i>"]
    assert block.differences.rows == [
        [evil, "entity", "<b>", "\N{EN DASH}", "<b>"],
        ["x", "entity", "\N{EN DASH}", "<i>", "\N{EN DASH}"],
    ]


def test_what_differs_has_a_frame() -> None:
    html = render_entities("Ada beat Alan", {(0, 3): "P", (9, 13): "P"}, {(9, 13): "P"})
    assert [attrs["class"] for tag, attrs in Markup(html).elements if tag == "mark"] == [
        "same",
        "different",
    ]


@pytest.mark.parametrize("ents", [None, ["O"] * 290 + ["B-P"] + ["I-P"] * 30 + ["O"] * 179])
def test_long_documents_are_cut_around_differences(ents: list[str] | None) -> None:
    words = [f"w{i}" for i in range(500)]
    first = ["NOUN"] * 500
    second = [*first]
    second[0] = second[300] = second[305] = "VERB"
    (document,) = find_most_different(
        predict(make_doc(words, first, ents)), predict(make_doc(words, second, ents)), ALL
    ).documents
    ranges, n_left_out = choose_ranges(document.docs, document.differences)
    text = document.docs[0].text
    parts = [text[start:end].split() for start, end in ranges]
    start, end = (290, 306 + CONTEXT) if ents is None else (290, 321)
    assert parts == [words[: 1 + CONTEXT], words[start:end]]
    assert n_left_out == 500 - sum(map(len, parts))
    block = show_side_by_side(document, document.docs[0], ("one", "two"), None)
    assert block.note == (
        f"{n_left_out} tokens of 500 are left out, far from the differences below."
    )
    shown = Markup("".join(block.columns.values())).text
    assert shown.count("\N{HORIZONTAL ELLIPSIS}") == 4
    assert "VERB" in shown, "tags stand in the text where the entities are the same"


def test_of_a_long_document_in_another_category_the_beginning_is_shown() -> None:
    words = [f"w{i}" for i in range(500)]
    (document,) = find_most_different(
        predict(make_doc(words, cats={"A": 1.0})), predict(make_doc(words, cats={"B": 1.0})), ALL
    ).documents
    gold = make_doc(words, cats={"A": 0.0, "B": 1.0})
    block = show_side_by_side(document, gold, ("one", "two"), CATEGORIES)
    shown = " ".join([*words[:LONGEST], "\N{HORIZONTAL ELLIPSIS}"])
    assert [Markup(html).text for html in block.columns.values()] == [shown, shown]
    assert block.differences.rows == [["(document)", "category", "A", "B", "B"]]


def test_entities_come_before_tags() -> None:
    words = [f"w{i}" for i in range(60)]
    (document,) = find_most_different(
        predict(make_doc(words, ["NOUN"] * 60, ["O"] * 59 + ["B-P"])),
        predict(make_doc(words, ["VERB"] * 60)),
        ALL,
    ).documents
    block = show_side_by_side(document, document.docs[0], ("one", "two"), None)
    assert len(block.differences.rows) == MOST_DIFFERENCES
    assert block.differences.rows[-1] == ["w59", "entity", "P", "\N{EN DASH}", "P"]
    assert block.note == f"{MOST_DIFFERENCES} of 61 differences are listed."
