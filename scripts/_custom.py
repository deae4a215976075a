"""The user's own annotations: JSONL, spaCy's binary format, CoNLL-U, or words with entity tags.

A JSONL line is an object with a "text", or with "tokens" to build one from, and any of

- "entities": [[start, end, label], ...] or [{"start": 0, "end": 5, "label": "PER"}, ...], in
  characters of the text; an empty list means no entities, a missing list means unknown ones;
- "cats": {"label": 0 or 1, ...}, or "label": "the one that holds";
- "pos" (UPOS) and "tags" (XPOS): lists as long as "tokens", "" if unknown.

"lang" says which language the document is in, for a corpus of several.

"spaces" says which tokens a space follows when there is no "text".

In CoNLL-U, entities are in the MISC column, see `_conllu`. `_columns` reads words with entity tags.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spacy.language import Language
from spacy.tokens import Doc, DocBin, Span
from spacy.util import filter_spans, get_words_and_spaces

from scripts import _columns
from scripts._conllu import UPOS, misc_tags, read_conllu, read_lines, treebank_doc
from scripts._notes import Notes
from spacy_distil.errors import CorpusError

KEYS = ("text", "tokens", "spaces", "pos", "tags", "entities", "cats", "label", "lang")
# Key of `doc.user_data` for the code of a document's language.
LANG = "lang"

SUFFIXES = (".spacy", ".jsonl", ".conllu", *_columns.SUFFIXES)
UNFIT = "entities that do not fit the tokens, left missing"


class Noted(NamedTuple):
    """A document, and what of its annotation is lost or repaired."""

    doc: Doc
    notes: Notes


def read_docs(path: Path, nlp: Language, notes: Notes) -> list[Noted]:
    """Annotated documents of a file.

    nlp: its vocab holds the docs, its tokenizer splits texts that come without tokens.
    notes: of the file.
    """
    if not path.is_file():
        raise CorpusError(f"No such file: {path}")
    if path.suffix == ".spacy":
        docs = _read_spacy(path, nlp)
    elif path.suffix == ".jsonl":
        docs = list(_read_jsonl(path, nlp))
    elif path.suffix == ".conllu":
        docs = _read_conllu(path, nlp, notes)
    elif path.suffix in _columns.SUFFIXES:
        docs = [Noted(*each) for each in _columns.read_columns(path, nlp)]
    else:
        raise CorpusError(
            f"{path}: unknown kind of file '{path.suffix}', expected one of "
            f"{', '.join(SUFFIXES)}. `python -m spacy convert` makes .spacy of other formats"
        )
    kept = [each for each in docs if each.doc.text.strip()]
    if len(kept) < len(docs):
        notes.add("documents without text", str(path), len(docs) - len(kept))
    if not kept:
        raise CorpusError(f"{path}: no document with text in it")
    return kept


def _read_spacy(path: Path, nlp: Language) -> list[Noted]:
    try:
        return [Noted(doc, Notes()) for doc in DocBin().from_disk(path).get_docs(nlp.vocab)]
    except Exception as error:  # zlib, msgpack and spaCy each raise their own
        raise CorpusError(f"{path}: not a readable .spacy file ({error})") from error


def _read_conllu(path: Path, nlp: Language, notes: Notes) -> list[Noted]:
    documents = read_conllu(path, notes)
    tagged = zip(documents, misc_tags(documents, path), strict=True)
    return [Noted(treebank_doc(each, tags, {}, nlp), each.notes) for each, tags in tagged]


def _read_jsonl(path: Path, nlp: Language) -> Iterator[Noted]:
    """Raises CorpusError if most of the entities of the file do not fit the tokens."""
    n_entities = n_unfit = 0
    example = ""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        place, notes = f"{path}:{number}", Notes()
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{place}: not JSON ({error})") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{place}: {type(record).__name__}, expected an object with a 'text'")
        for key in sorted(set(record) - set(KEYS)):
            notes.add(f"values of the unknown key '{key}'", place)
        try:
            doc = make_doc(record, nlp, place, notes)
        except CorpusError as error:
            raise CorpusError(f"{place}: {error}") from error
        n_entities += len(record.get("entities") or ())
        if UNFIT in notes.counts:
            n_unfit += notes.counts[UNFIT]
            example = example or notes.examples[UNFIT][0]
        yield Noted(doc, notes)
    if 2 * n_unfit > n_entities:
        raise CorpusError(
            f"{path}: {n_unfit:,} of {n_entities:,} entities do not begin and end with a token, "
            f"such as {example}. Expected offsets in characters of this text, from 0, the end "
            "after the last character; or, for another tokenization, 'tokens' of your own"
        )


def make_doc(record: dict[str, Any], nlp: Language, place: str, notes: Notes) -> Doc:
    """One JSONL record as a `Doc`. A "label" becomes `{label: 1.0}`."""
    doc = _tokenised(record, nlp)
    if "entities" in record:
        _set_entities(doc, record["entities"], place, notes)
    doc.cats = _cats(record)
    if record.get("lang") is not None:
        doc.user_data[LANG] = _lang(record["lang"])
    return doc


def _lang(lang: object) -> str:
    if not isinstance(lang, str) or not lang.isalpha() or not lang.islower():
        raise CorpusError(f"'lang' is {lang!r}, expected the code of a language, such as 'fr'")
    return lang


def _list(record: dict[str, Any], key: str, kind: type, contents: str) -> list[Any] | None:
    value = record.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise CorpusError(f"'{key}' is {value!r}, expected a list of {contents}")
    return value


def _tokenised(record: dict[str, Any], nlp: Language) -> Doc:
    text = record.get("text")
    if text is not None and not isinstance(text, str):
        raise CorpusError(f"'text' is {text!r}, expected a string")
    words = _list(record, "tokens", str, "strings")
    spaces = _list(record, "spaces", bool, "true or false")
    columns = {key: _list(record, key, str, "strings") for key in ("pos", "tags")}
    if words is None:
        for key in ("pos", "tags", "spaces"):
            if record.get(key) is not None:
                raise CorpusError(f"'{key}' without 'tokens': say which words it is about")
        if text is None:
            raise CorpusError(f"neither 'text' nor 'tokens' among the keys {sorted(record)}")
        return nlp.make_doc(text)
    for key, values in {**columns, "spaces": spaces}.items():
        if values is not None and len(values) != len(words):
            raise CorpusError(f"{len(values)} '{key}' for {len(words)} 'tokens'")
    unknown = sorted(set(columns["pos"] or ()) - {*UPOS, "", "_", "SPACE"})
    if unknown:
        raise CorpusError(f"'pos' has {unknown}, expected UPOS tags: {', '.join(UPOS)}")
    if any(not word.strip() for word in words):
        raise CorpusError("'tokens' has an empty token")
    if text is not None:
        try:
            all_words, all_spaces = get_words_and_spaces(words, text)
        except ValueError as error:
            raise CorpusError(
                f"'tokens' and 'text' differ: the tokens give {' '.join(words)!r}, "
                f"the text is {text!r}"
            ) from error
    else:
        all_words, all_spaces = words, spaces or [True] * len(words)
    doc = Doc(nlp.vocab, words=all_words, spaces=all_spaces)
    # `get_words_and_spaces` makes tokens of runs of whitespace: they have no tag.
    tokens = [token for token in doc if not token.is_space]
    for token, pos in zip(tokens, columns["pos"] or (), strict=False):
        token.pos_ = "" if pos == "_" else pos
    for token, tag in zip(tokens, columns["tags"] or (), strict=False):
        token.tag_ = "" if tag == "_" else tag
    return doc


def _set_entities(doc: Doc, entities: object, place: str, notes: Notes) -> None:
    if not isinstance(entities, list):
        raise CorpusError(f"'entities' is {entities!r}, expected a list of [start, end, label]")
    spans: list[Span] = []
    unknown: set[int] = set()
    for entity in entities:
        start, end, label = _offsets(entity, len(doc.text))
        span = doc.char_span(start, end, label=label)
        if span is None or not span.text.strip():
            example = f"{place} [{start}, {end}, {label}] {doc.text[start:end]!r}"
            notes.add(UNFIT, example)
            touched = doc.char_span(start, end, alignment_mode="expand")
            unknown.update(token.i for token in touched or ())
        else:
            spans.append(span)
    kept = filter_spans(spans)
    for span in spans:
        if span not in kept:
            example = f"{place} [{span.start_char}, {span.end_char}, {span.label_}] {span.text!r}"
            notes.add("entities inside or across another one", example)
    unknown -= {token.i for span in kept for token in span}
    missing = [doc[index : index + 1] for index in sorted(unknown)]
    doc.set_ents(kept, missing=missing)


def _offsets(entity: object, length: int) -> tuple[int, int, str]:
    if isinstance(entity, dict):
        values: Sequence[Any] = [entity.get(key) for key in ("start", "end", "label")]
    else:
        values = entity if isinstance(entity, list) else ()
    if len(values) == 3:
        start, end, label = values
        whole = all(isinstance(value, int) for value in (start, end))
        if whole and isinstance(label, str) and label and 0 <= start < end <= length:
            return start, end, label
    raise CorpusError(
        f"entity {entity!r}, expected [start, end, label] with 0 <= start < end <= {length} "
        "(characters of the text)"
    )


def _cats(record: dict[str, Any]) -> dict[str, float]:
    label, cats = record.get("label"), record.get("cats")
    if label is not None and cats is not None:
        raise CorpusError("both 'label' and 'cats': give one of them")
    if label is not None:
        if not isinstance(label, str) or not label:
            raise CorpusError(f"'label' is {label!r}, expected a string")
        return {label: 1.0}
    if cats is None:
        return {}
    if not isinstance(cats, dict) or any(value not in (0, 1) for value in cats.values()):
        raise CorpusError(f"'cats' is {cats!r}, expected an object of labels with 0 or 1")
    return {name: float(value) for name, value in cats.items()}
