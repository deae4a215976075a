"""Components of no known kind that decide something: rules, stand-ins for models and services."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import spacy
from spacy.language import Language
from spacy.tokens import Doc, Span, SpanGroup

PEOPLE, PLACES = {"Ann", "Bob", "Zoë"}, {"Rome", "Oslo", "Zürich"}


def entities_of(doc: Doc) -> list[Span]:
    found = {**dict.fromkeys(PEOPLE, "PER"), **dict.fromkeys(PLACES, "LOC")}
    return [Span(doc, t.i, t.i + 1, found[t.text]) for t in doc if t.text in found]


@Language.component("tests_zero_shot", assigns=["doc.ents"])
def zero_shot(doc: Doc) -> Doc:
    """Sets entities, and leaves a doc without any as it is."""
    if entities := entities_of(doc):
        doc.ents = entities
    return doc


@Language.component("tests_spans", assigns=["doc.spans"])
def spans(doc: Doc) -> Doc:
    """Overlapping spans with scores: 0.9 for an entity, 0.3 for it and the token after it."""
    found = [(span, 0.9) for span in entities_of(doc)]
    found += [
        (Span(doc, span.start, span.end + 1, "LONG"), 0.3)
        for span, _ in [*found]
        if span.end < len(doc)
    ]
    group = SpanGroup(doc, name="sc", spans=[span for span, _ in found])
    group.attrs["scores"] = np.array([score for _, score in found], dtype="f")
    doc.spans["sc"] = group
    return doc


@Language.component("tests_tokens")
def tokens(doc: Doc) -> Doc:
    """Every annotation of a token. It does not declare them."""
    for token in doc:
        if token.is_space:
            continue
        is_name = token.text[0].isupper()
        token.tag_ = "NAME" if is_name else "WORD"
        token.pos_ = "PROPN" if is_name else "X"
        token.set_morph("Number=Sing" if is_name else "")
        token.lemma_ = re.sub("ed$", "", token.text)
        token.is_sent_start = token.i == 0 or doc[token.i - 1].text == "."
    return doc


@Language.component("tests_parse", assigns=["token.dep", "token.head"])
def parse(doc: Doc) -> Doc:
    """The first token of a sentence is the head of the others."""
    heads, start = [], 0
    for token in doc:
        start = token.i if token.i and doc[token.i - 1].text == "." else start
        heads.append(start)
    deps = ["ROOT" if head == i else "dep" for i, head in enumerate(heads)]
    parsed = Doc(doc.vocab, words=[t.text for t in doc], heads=heads, deps=deps)
    doc.from_array(["HEAD", "DEP"], parsed.to_array(["HEAD", "DEP"]))
    return doc


@Language.factory("tests_cats", assigns=["doc.cats"], default_config={"scale": 1.0, "rest": True})
def make_cats(nlp: Language, name: str, scale: float, rest: bool) -> Any:
    def cats(doc: Doc) -> Doc:
        score = 0.8 if any(token.text in PEOPLE for token in doc) else 0.1
        doc.cats = {"travel": scale * score, **({"food": scale * (1 - score)} if rest else {})}
        return doc

    return cats


@Language.factory("tests_service", assigns=["doc.ents"], default_config={"fail": "", "times": -1})
class Service:
    """Counts the documents that it is asked about in a file, one line each.

    fail: a text that it fails on, so many `times`; -1 for always.
    """

    calls: Path  # set it before a document is annotated

    def __init__(self, nlp: Language, name: str, fail: str, times: int) -> None:
        self.fail, self.times = fail, times

    def __call__(self, doc: Doc) -> Doc:
        with Service.calls.open("a", encoding="utf8") as file:
            file.write(doc.text.replace("\n", " ") + "\n")
        if self.fail and self.fail in doc.text and self.times != 0:
            self.times -= 1
            raise OSError("the service is busy")
        return zero_shot(doc)


@Language.component("tests_counts")
def counts(doc: Doc) -> Doc:
    """Counts as the service does. What it leaves cannot be saved."""
    with Service.calls.open("a", encoding="utf8") as file:
        file.write("again\n")
    doc.user_data["anything"] = lambda: doc
    return doc


def asked() -> list[str]:
    return Service.calls.read_text(encoding="utf8").splitlines()


def deciders(*factories: str, **settings: Any) -> Language:
    """A pipeline of these components."""
    nlp = spacy.blank("en")
    for factory in factories:
        nlp.add_pipe(factory, config=settings.get(factory, {}))
    return nlp
