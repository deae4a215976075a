"""Noise in documents whose annotation stays where it belongs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
from spacy.attrs import (  # type: ignore[import-not-found]
    DEP,
    ENT_ID,
    ENT_IOB,
    ENT_KB_ID,
    ENT_TYPE,
    HEAD,
    LEMMA,
    MORPH,
    NORM,
    POS,
    SENT_START,
    TAG,
)
from spacy.tokens import Doc, Span, SpanGroup

from spacy_distil.noise.kinds import CASING, CHANGES, ODD_SPACES, SPACES, TYPOS, is_long

_INSIDE = 1
_OUTSIDE = 2


def add_noise(doc: Doc, kind: str, rate: float, rng: Random, *, lang: str | None = None) -> Doc:
    """Make a noisy copy of a doc, with all annotation in its place.

    The copy has the same tokens with other texts. `spaces` adds tokens of whitespace, as spaCy's
    tokenizer does. Extension attributes of spans and tokens are left out.

    kind: one of `KINDS`.
    rate: share of the words that change, of those that the kind can change: 0 to 1. For `spaces`,
        share of the single spaces. Casing always changes the whole document.
    lang: language of the keyboard. `None` for the doc's.
    """
    if kind == SPACES:
        places = [i for i, token in enumerate(doc[:-1]) if token.whitespace_]
        return insert_spaces(
            doc, {i: rng.choice(ODD_SPACES) for i in places if rng.random() < rate}
        )
    words = [token.text for token in doc]
    return replace_words(doc, draw_words(words, kind, rate, rng, lang or doc.lang_))


def draw_words(
    words: Sequence[str],
    kind: str,
    rate: float,
    rng: Random,
    lang: str,
    *,
    only: Collection[int] | None = None,
) -> dict[int, str]:
    """Draw the words that change. RETURNS: their new texts by number.

    only: numbers of the words that may change; `None` for all.
    """
    change, changed = CHANGES[kind], {}
    for i, word in enumerate(words):
        if word.isspace() or (only is not None and i not in only):
            continue
        # A number is drawn only for words that the kind can change.
        if kind in TYPOS and not is_long(word):
            continue
        if kind not in CASING and rng.random() >= rate:
            continue
        new = change(word, rng, lang)
        if new and new != word:
            changed[i] = new
    return changed


def replace_words(doc: Doc, words: Mapping[int, str]) -> Doc:
    """Copy a doc with other texts for some of its tokens, given by their number."""
    texts = [words.get(token.i, token.text) for token in doc]
    return _rebuild(doc, texts, [bool(token.whitespace_) for token in doc], [*range(len(doc))])


def insert_spaces(doc: Doc, spaces: Mapping[int, str]) -> Doc:
    """Copy a doc with another space after some of its tokens, given by their number.

    " " comes after the space that is there. Any other one takes its place.
    """
    texts: list[str] = []
    has_space: list[bool] = []
    origins: list[int] = []
    for token in doc:
        odd = spaces.get(token.i)
        texts.append(token.text)
        has_space.append(bool(token.whitespace_) and odd in (None, " "))
        origins.append(token.i)
        if odd is not None:
            texts.append(odd)
            has_space.append(False)
            origins.append(-1)
    return _rebuild(doc, texts, has_space, origins)


def _rebuild(
    doc: Doc, texts: Sequence[str], has_space: Sequence[bool], origins: Sequence[int]
) -> Doc:
    """Make a doc with the annotation of another.

    origins: number of the token in `doc` that each new one comes from; -1 for new whitespace.
    """
    new = Doc(doc.vocab, words=list(texts), spaces=list(has_space))
    is_parsed = doc.has_annotation("DEP")
    attrs = [NORM, TAG, POS, MORPH, LEMMA, ENT_IOB, ENT_TYPE, ENT_KB_ID, ENT_ID]
    attrs += [HEAD, DEP] if is_parsed else [SENT_START]
    old_rows: Any = np.asarray(doc.to_array(attrs)).reshape(len(doc), len(attrs))
    source = np.asarray(origins, dtype=np.int64)
    is_old = source >= 0
    rows: Any = np.zeros((len(texts), len(attrs)), dtype=old_rows.dtype)
    rows[is_old] = old_rows[source[is_old]]
    column = {attr: i for i, attr in enumerate(attrs)}
    norms = new.to_array([NORM]).reshape(-1)
    for i, origin in enumerate(origins):
        if origin < 0 or texts[i] != doc[origin].text:
            rows[i, column[NORM]] = norms[i]
    places = np.flatnonzero(is_old)  # of the old tokens
    if not is_old.all():
        for i in np.flatnonzero(~is_old).tolist():
            after = rows[i + 1]
            inside = after[column[ENT_IOB]] == _INSIDE
            for attr in (ENT_TYPE, ENT_KB_ID, ENT_ID) if inside else ():
                rows[i, column[attr]] = after[column[attr]]
            is_known = after[column[ENT_IOB]] != 0
            rows[i, column[ENT_IOB]] = _INSIDE if inside else _OUTSIDE * is_known
            if not is_parsed:  # not the start of a sentence, if sentences are known
                known = after[column[SENT_START]] != 0
                rows[i, column[SENT_START]] = np.array(-1).astype(np.uint64) * known
        if is_parsed:
            heads = np.array([places[token.head.i] for token in doc]) - places
            offsets = np.full(len(texts), -1, dtype=np.int64)  # whitespace hangs on the one before
            offsets[places] = heads
            rows[:, column[HEAD]] = offsets.astype(rows.dtype)
    if len(texts):
        new = new.from_array(attrs, rows)
    new.cats = dict(doc.cats)
    new.user_data = {k: value for k, value in doc.user_data.items() if not _is_of_tokens(k)}
    # An empty span keeps its place, too.
    begins = [*places.tolist(), len(texts)]
    for key, group in doc.spans.items():
        spans = [
            Span(
                new,
                begins[span.start],
                begins[span.end - 1] + 1 if span.end > span.start else begins[span.start],
                label=span.label,
                kb_id=span.kb_id,
                span_id=span.id,
            )
            for span in group
        ]
        new.spans[key] = SpanGroup(new, name=group.name, spans=spans, attrs=dict(group.attrs))
    return new


def _is_of_tokens(key: Any) -> bool:
    """Whether a key of user data belongs to an extension attribute of a span or a token."""
    return isinstance(key, tuple) and key[0] == "._." and key[2] is not None
