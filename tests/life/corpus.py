"""Docs with all annotations that spaCy's pipes learn from, and the pipes with their own models."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Any

import spacy
from spacy.tokens import Doc
from spacy.training import Example

from tests.util import LISTENER

# Factories that take a `tok2vec`: the annotation that each learns from, and the score of it.
FACTORIES = {
    "tagger": ("tags", "tag_acc"),
    "morphologizer": ("morphs", "morph_acc"),
    "trainable_lemmatizer": ("lemmas", "lemma_acc"),
    "senter": ("sent_starts", "sents_f"),
    "parser": ("heads", "dep_las"),
    "ner": ("entities", "ents_f"),
    "distil_ner": ("entities", "ents_f"),
    "spancat": ("spans", "spans_sc_f"),
    "spancat_singlelabel": ("spans", "spans_sc_f"),
    "textcat": ("cats", "cats_macro_f"),
    "textcat_multilabel": ("cats", "cats_macro_f"),
}
# Annotations that come with another one.
PARTNERS = {"morphs": ["pos"], "heads": ["deps"]}

# Two kinds of sentences: subjects, verbs and objects, and what they are tagged.
TRAVEL = (["Ann", "Bob", "Zoë"], ["visited", "left"], ["Rome", "Oslo", "Zürich"])
FOOD = (["We", "They"], ["like", "liked"], ["pizza", "pieces"])
ROWS: dict[str, dict[str, list[Any]]] = {
    "travel": {
        "tags": ["NNP", "VBD", "NNP", "."],
        "pos": ["PROPN", "VERB", "PROPN", "PUNCT"],
        "entities": ["U-PER", "O", "U-LOC", "O"],
    },
    "food": {
        "tags": ["PRP", "VBP", "NN", "."],
        "pos": ["PRON", "VERB", "NOUN", "PUNCT"],
        "entities": ["O", "O", "O", "O"],
    },
    "both": {
        "morphs": ["Case=Nom", "Number=Sing", "Case=Acc", ""],
        "sent_starts": [1, -1, -1, -1],
        "deps": ["nsubj", "ROOT", "obj", "punct"],
    },
}
LEMMAS = {"visited": "visit", "left": "leave", "liked": "like", "pieces": "piece"}


def make_annotated(
    nlp: Any, n: int = 16, *, start: int = 0, keep: Collection[str] | None = None
) -> list[Example]:
    """Docs of two sentences of four tokens.

    keep: the annotations that are there; None for all of them.
    """
    examples = []
    for i in range(start, start + n):
        rng = random.Random(i)
        words: list[str] = []
        annotations: dict[str, Any] = {"heads": []}
        for kind in ("travel", "food") if i % 2 else ("food", "travel"):
            annotations["heads"] += [len(words) + 1] * 4
            words += [rng.choice(each) for each in (TRAVEL if kind == "travel" else FOOD)]
            words.append(".")
            for name, row in {**ROWS[kind], **ROWS["both"]}.items():
                annotations.setdefault(name, []).extend(row)
        doc = Doc(nlp.vocab, words=words)
        annotations["lemmas"] = [LEMMAS.get(word, word.lower()) for word in words]
        annotations["cats"] = {"travel": float(i % 2), "food": float(1 - i % 2)}
        annotations["spans"] = {
            "sc": [
                (token.idx, token.idx + len(token), tag[2:])
                for token, tag in zip(doc, annotations["entities"], strict=True)
                if tag != "O"
            ]
        }
        if keep is not None:
            kept = {name for each in keep for name in (each, *PARTNERS.get(each, ()))}
            annotations = {name: annotations[name] for name in kept}
        examples.append(Example.from_dict(doc, annotations))
    return examples


def add_stock_pipes(
    nlp: Any, factories: Sequence[str], listener: dict[str, Any] = LISTENER
) -> None:
    """Add pipes with their own default models, a listener in place of the tok2vec."""
    blank: Any = spacy.blank("en")
    for factory in factories:
        default = blank.get_factory_meta(factory).default_config["model"]
        nlp.add_pipe(factory, config={"model": {**default, "tok2vec": dict(listener)}})


def annotations_of(doc: Doc) -> dict[str, Any]:
    """Return a doc's annotations in a form that can be compared."""
    return {
        "tokens": [
            (t.text, t.tag_, t.pos_, str(t.morph), t.lemma_, t.dep_, t.head.i, t.is_sent_start)
            for t in doc
        ],
        "entities": [(each.start, each.end, each.label_) for each in doc.ents],
        "spans": {
            key: sorted((each.start, each.end, each.label_) for each in group)
            for key, group in doc.spans.items()
        },
        "cats": {label: round(score, 4) for label, score in doc.cats.items()},
        "tensor": doc.tensor.round(4).tolist(),
    }
