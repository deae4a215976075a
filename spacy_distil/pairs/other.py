"""Pairs of texts as docs and training data: a doc, and a text that it names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example

from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.text.docs import FURTHER_TEXT
from spacy_distil.vectors.pairs import read_records


def add_extension(name: str) -> None:
    """Add the extension `doc._.NAME`, a string that is kept with the doc.

    Raises ConfigError if there is another extension of that name.
    """
    check_name(name, other_of)
    if not Doc.has_extension(name):
        Doc.set_extension(
            name, getter=partial(other_of, name=name), setter=partial(_set, name=name)
        )


def check_name(name: str, getter: Callable) -> None:
    """Raise ConfigError if doc._.NAME cannot be an extension with a getter, or is another one."""
    if not name.isidentifier():
        raise ConfigError(f"{name!r} cannot name an extension doc._.NAME: expected an identifier.")
    if Doc.has_extension(name):
        known = Doc.get_extension(name)[2]
        if not isinstance(known, partial) or known.func is not getter:
            raise ConfigError(
                f"doc._.{name} is an extension of other code or another pipe. Set another name in "
                'the pipe, such as other = "hypothesis".'
            )


def _set(doc: Doc, value: Any, *, name: str) -> None:
    if value is None:
        doc.user_data.pop(FURTHER_TEXT + name, None)
    elif isinstance(value, (str, Doc)):
        doc.user_data[FURTHER_TEXT + name] = value if isinstance(value, str) else value.text
    else:
        raise ConfigError(
            f"doc._.{name} = {value!r:.60}: expected a string, a doc or None, the other text of "
            "the pair."
        )


def other_of(doc: Doc, name: str) -> str | None:
    """Return the text that a doc names in `doc._.NAME`, or None."""
    other: str | None = doc.user_data.get(FURTHER_TEXT + name)
    return other


def other_in(example: Example, name: str) -> str | None:
    """Return the text that an example names: in its reference, otherwise in the predicted doc."""
    other = other_of(example.reference, name)
    return other_of(example.predicted, name) if other is None else other


def pairs_of(docs: Iterable[Doc], name: str) -> list[tuple[int, tuple[Doc, str]]]:
    """List the docs that name another text, each with its number and that text."""
    found = ((i, doc, other_of(doc, name)) for i, doc in enumerate(docs))
    return [(i, (doc, other)) for i, doc, other in found if other is not None]


def LabelledPairs(
    path: str | Path | None, other: str = "other", limit: int = 0
) -> Callable[[Language], Iterator[Example]]:
    """Read pairs of texts with labels for `distil_pair`, from JSON lines.

        {"text": "A man plays.", "other": "Nobody plays.", "label": "contradiction"}
        {"text": "A man plays.", "other": "Somebody plays.", "cats": {"similarity": 0.9}}

    The label becomes 1.0 in `doc.cats`; the labels of the other lines are 0.0 then. A line without
    either is a pair without annotation.

    path: .jsonl file.
    other: the extension that names the other text, as in the settings of the pipe.
    limit: only the first N pairs; 0 for all.
    """
    add_extension(other)

    def read(nlp: Language) -> Iterator[Example]:
        if path is None:
            raise CorpusError("There are no pairs: set the path of spacy-distil.LabelledPairs.v1.")
        expected = (
            '{"text": "...", "other": "...", "label": "..."}, or instead of "label" numbers as in '
            '"cats": {"similarity": 0.9}'
        )
        found = read_records(Path(path), _is_labelled, expected)
        records = list(islice(found, limit or None))
        labels = dict.fromkeys(record["label"] for record in records if record.get("label"))
        for record in records:
            predicted, reference = nlp.make_doc(record["text"]), nlp.make_doc(record["text"])
            for doc in (predicted, reference):
                doc._.set(other, record["other"])
            cats = dict(record.get("cats", {}))
            if record.get("label") is not None:
                cats |= {**dict.fromkeys(labels, 0.0), record["label"]: 1.0}
            reference.cats = cats
            yield Example(predicted, reference)

    return read


def _is_labelled(record: dict[str, Any]) -> bool:
    numbers = record.get("cats", {}).values()
    has_label = isinstance(record.get("label") or "", str)
    return has_label and all(type(each) in (int, float) for each in numbers)
