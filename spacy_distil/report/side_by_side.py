"""Documents as two pipelines see them, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape
from spacy import displacy
from spacy.tokens import Doc

from spacy_distil.report.differences import (
    ANNOTATIONS,
    WHOLE,
    Difference,
    DifferentDocument,
    Labels,
)
from spacy_distil.report.layout import MISSING, count
from spacy_distil.report.page import SideBySide
from spacy_distil.tables import Table

# Longer documents are cut to this number of tokens around each difference.
LONGEST = 120
CONTEXT = 10
# More differences of a document are not shown.
MOST_DIFFERENCES = 15
# From this score on, a category of the gold that excludes no other one is assigned.
ASSIGNED = 0.5

_ENTITIES = ANNOTATIONS["ents_f"]
_GAP = " \N{HORIZONTAL ELLIPSIS} "
# displaCy's own is made for a white page.
_ENTITY = '<mark class="{state}" style="background: {bg}">{text}<span>{label}</span></mark>'

Ranges = list[tuple[int, int]]


def show_side_by_side(
    document: DifferentDocument,
    gold: Doc,
    names: tuple[str, str],
    categories: dict[str, Any] | None,
) -> SideBySide:
    """Show the text of a document twice, each with the entities of a pipeline, and the differences.

    Without differences in entities, it shows the tags that differ in their place.

    gold: the annotated document.
    categories: as by `find_categories`.
    """
    shown = _choose(document.differences)
    ranges, n_left_out = choose_ranges(document.docs, shown)
    notes = []
    if n_left_out:
        notes.append(
            f"{count(n_left_out, 'token')} of {len(document.docs[0]):,} are left out, far from the "
            f"differences below."
        )
    if len(shown) < len(document.differences):
        notes.append(f"{len(shown)} of {len(document.differences):,} differences are listed.")
    title = f"Document {document.index + 1:,}: {count(len(document.differences), 'difference')}"
    return SideBySide(
        title=title,
        columns={name: _show(document, side, ranges) for side, name in enumerate(names)},
        differences=_make_table(title, document.docs[0].text, shown, gold, names, categories),
        note=" ".join(notes),
    )


def _choose(differences: Sequence[Difference]) -> list[Difference]:
    """Choose entities and categories first, which are fewer than tags, in the order of the text."""
    first = sorted(differences, key=lambda each: each.annotation.on_tokens)[:MOST_DIFFERENCES]
    return [each for each in differences if each in first]


def render_entities(text: str, labels: Labels, different: Labels) -> Markup:
    """Render labels in a text with displaCy. Those that are `different` too get a frame."""
    entities = [
        {
            "start": start,
            "end": end,
            "label": escape(label),  # displaCy escapes the text only
            "params": {"state": "different" if (start, end) in different else "same"},
        }
        for (start, end), label in sorted(labels.items())
    ]
    html = displacy.render(
        {"text": text, "ents": entities, "settings": {"direction": "inherit"}},
        style="ent",
        manual=True,
        page=False,
        jupyter=False,
        options={"template": _ENTITY},
    )
    return Markup(html)


def choose_ranges(docs: tuple[Doc, Doc], shown: Sequence[Difference]) -> tuple[Ranges, int]:
    """Choose the parts of the text around the differences, and its beginning for one that concerns
    the whole. No entity is cut.

    RETURNS: start and end of each part in characters, and the number of tokens that are left out.
    """
    doc = docs[0]
    if len(doc) <= LONGEST:
        return [(0, len(doc.text))], 0
    kept = [False] * len(doc)

    def keep(start: int, end: int) -> None:
        for i in range(max(0, start), min(end, len(doc))):
            kept[i] = True

    for difference in shown:
        if difference.place == WHOLE:
            keep(0, LONGEST)
            continue
        start, end = _tokens(doc, difference.place)
        keep(start - CONTEXT, end + CONTEXT)
    for each in docs:
        for ent in each.ents:
            start, end = _tokens(doc, (ent.start_char, ent.end_char))
            if any(kept[start:end]):
                keep(start, end)
    ranges: Ranges = []
    for token in doc:
        if not kept[token.i]:
            continue
        end = token.idx + len(token)
        if token.i and kept[token.i - 1]:
            ranges[-1] = ranges[-1][0], end
        else:
            ranges.append((token.idx, end))
    return ranges, kept.count(False)


def _tokens(doc: Doc, place: tuple[int, int]) -> tuple[int, int]:
    """The first token of a place in the text, and the one behind its last."""
    span = doc.char_span(*place, alignment_mode="expand")
    return (0, 0) if span is None else (span.start, span.end)


def _show(document: DifferentDocument, side: int, ranges: Ranges) -> Markup:
    doc = document.docs[side]
    by_annotation: dict[str, Labels] = {}
    for each in document.differences:
        by_annotation.setdefault(each.annotation.name, {})[each.place] = each.labels[side]
    different = by_annotation.get(_ENTITIES.name, {})
    labels = _ENTITIES.read(doc, None)
    if not different:
        labels = by_annotation.get("UPOS") or by_annotation.get("XPOS") or labels
    text = ""
    moved: Labels = {}
    moved_different: Labels = {}
    for start, end in ranges:
        text += _GAP if start else ""
        shift = len(text) - start
        for old, new in ((labels, moved), (different, moved_different)):
            new |= {
                (first + shift, last + shift): label
                for (first, last), label in old.items()
                if start <= first and last <= end
            }
        text += doc.text[start:end]
    if not ranges or ranges[-1][1] < len(doc.text.rstrip()):
        text += _GAP
    return render_entities(text, moved, moved_different)


def _make_table(
    title: str,
    text: str,
    shown: Sequence[Difference],
    gold: Doc,
    names: tuple[str, str],
    categories: dict[str, Any] | None,
) -> Table:
    if categories is not None and categories["threshold"] is not None:
        categories = {**categories, "threshold": ASSIGNED}
    truth = {each.annotation: each.annotation.read(gold, categories) for each in shown}
    rows = []
    for each in shown:
        start, end = each.place
        cells = [*each.labels, truth[each.annotation].get(each.place, "")]
        rows.append(
            [
                "(document)" if each.place == WHOLE else text[start:end],
                each.annotation.name,
                *(cell or MISSING for cell in cells),
            ]
        )
    return Table(title, ["text", "annotation", *names, "gold"], rows)
