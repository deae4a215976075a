"""Targets of explanations: a class, an entity, a tag."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from spacy.language import Language
from spacy.pipeline import (
    EntityRecognizer,
    Morphologizer,
    SentenceRecognizer,
    Tagger,
    TextCategorizer,
)
from spacy.pipeline.textcat_multilabel import MultiLabel_TextCategorizer
from spacy.tokens import Doc

from spacy_distil.errors import ConfigError
from spacy_distil.ner.decoding import MISSING, OUTSIDE, B, I, L, U
from spacy_distil.ner.pipe import DistilNER
from spacy_distil.ner.schemes import from_biluo
from spacy_distil.softmax import is_softmax
from spacy_distil.trust.explanations.scores import predict

Kind = Literal["cats", "ents", "tag", "pos"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Each target takes a computation of its own.
MOST_TARGETS = 64


@dataclass(frozen=True)
class Target:
    """A prediction of a pipe.

    pipe: name of the pipe.
    label: that it predicts.
    what: "cats:LABEL", the text of the entity, or the token.
    start, end: the tokens of the entity, or the tagged one. Both are 0 for a class of a document.
    rows, classes: which of the pipe's logits, see `scores.log_odds`.
    """

    pipe: str
    label: str
    what: str
    start: int
    end: int
    rows: tuple[int, ...]
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """A target as users write it: "cats:LABEL" or "tag:3".

    detail: what stands behind the colon; "" for nothing.
    """

    kind: Kind
    detail: str

    @property
    def is_single(self) -> bool:
        """Whether there is one such target in a doc, however long it is."""
        return self.kind == "cats" or self.detail.isdecimal()


def read_request(nlp: Language, target: str | None) -> Request:
    """Read a target; None for the first kind that the pipeline predicts.

    Raises ConfigError for one that the pipeline does not have.
    """
    kinds = [kind for kind in KINDS if any(_PIPES[kind](pipe) for _, pipe in nlp.pipeline)]
    if target is None:
        if not kinds:
            raise ConfigError(
                f"No pipe of this pipeline can be explained: it has {_list(nlp.pipe_names)}. "
                f"{_EXPLAINED}{_advice(nlp)}"
            )
        return Request(kinds[0], "")
    kind, colon, detail = target.partition(":")
    if kind not in KINDS or bool(colon) != bool(detail) or (kind == "ents" and detail):
        raise ConfigError(
            f"target = {target!r}: expected 'cats', 'cats:LABEL', 'ents', 'tag', 'tag:3', "
            "'tag:WORD', or 'pos' like 'tag'."
        )
    if kind not in kinds:
        found = f"It can explain {_list(kinds)}." if kinds else _EXPLAINED
        raise ConfigError(
            f"target = {target!r}: this pipeline has no pipe for {kind!r} among "
            f"{_list(nlp.pipe_names)}. {found}{_advice(nlp) if kind == 'ents' else ''}"
        )
    return Request(kind, detail)


def find_pipe(nlp: Language, request: Request) -> str:
    """Return the name of the pipe that predicts a target: of several, the last one, whose
    annotation stays.

    Raises ConfigError for a label that none has.
    """
    names = [name for name, pipe in nlp.pipeline if _PIPES[request.kind](pipe)]
    if request.kind != "cats" or not request.detail:
        return names[-1]
    pipes: list[Any] = [nlp.get_pipe(name) for name in names]
    for name, pipe in zip(reversed(names), reversed(pipes), strict=True):
        if request.detail in pipe.labels:
            return name
    labels = dict.fromkeys(label for pipe in pipes for label in pipe.labels)
    raise ConfigError(f"target = 'cats:{request.detail}': no such label. Labels: {_list(labels)}.")


def find_targets(nlp: Language, name: str, doc: Doc, request: Request) -> list[Target]:
    """Find the predictions for a doc with tokens that the pipes before `name` have processed.

    Raises ConfigError if there are too many, or if the doc has no such token.
    """
    pipe: Any = nlp.get_pipe(name)
    if request.kind == "cats":
        return [_category(name, pipe, doc, request.detail)]
    if request.kind == "ents":
        targets = _entities(name, pipe, doc)
    else:
        logits = predict(pipe, [doc])[0]
        targets = [
            Target(name, pipe.labels[best], doc[i].text, i, i + 1, (i,), (best,))
            for i in _find_tokens(doc, request)
            for best in [int(logits[i].argmax())]
        ]
    if len(targets) > MOST_TARGETS:
        raise ConfigError(
            f"target = {request.kind!r}: this text of {len(doc):,} tokens has {len(targets):,} "
            f"targets, and at most {MOST_TARGETS} are explained at once. Explain a part of the text"
            + (", or name a token, as in 'tag:3'." if request.kind != "ents" else ".")
        )
    return targets


def _category(name: str, pipe: Any, doc: Doc, label: str) -> Target:
    logits = predict(pipe, [doc])[0]
    if isinstance(pipe, MultiLabel_TextCategorizer):
        number = pipe.labels.index(label) if label else int((logits[:, 0] - logits[:, 1]).argmax())
        row, column = number, 0
    else:
        number = pipe.labels.index(label) if label else int(logits[0].argmax())
        row, column = 0, number
    label = pipe.labels[number]
    return Target(name, label, f"cats:{label}", 0, 0, (row,), (column,))


def _entities(name: str, pipe: DistilNER, doc: Doc) -> list[Target]:
    (predicted,) = pipe.predict([doc])
    batch = pipe.read([doc], keep_entities=True)
    assert batch is not None
    tags = np.full(len(doc), OUTSIDE, dtype=np.int64)
    entities = predicted.entities.tolist()
    for start, end, label in entities:
        moves = [U] if end == start + 1 else [B, *[I] * (end - start - 2), L]
        tags[start:end] = [1 + 4 * label + move for move in moves]
    tags = from_biluo(tags, pipe.scheme, batch.cuts, batch.is_space)
    targets = []
    for start, end, label in entities:
        rows = [i for i in range(start, end) if tags[i] != MISSING]
        classes = tuple(int(tags[i]) for i in rows)
        text = doc[start:end].text
        targets.append(Target(name, pipe.labels[label], text, start, end, tuple(rows), classes))
    return targets


def _find_tokens(doc: Doc, request: Request) -> list[int]:
    """Find the tokens of a target, without whitespace if it names none."""
    wanted = request.detail
    if not wanted:
        return [token.i for token in doc if not token.is_space]
    found = [token.i for token in doc if token.text == wanted]
    if wanted.isdecimal() and int(wanted) < len(doc):
        return [int(wanted)]
    if found:
        return found[:1] if request.is_single else found  # a year, for example, or a word
    if wanted.isdecimal():
        problem = f"the text has {len(doc):,} tokens, numbered from 0"
    else:
        problem = f"no token of the text is {wanted!r}. It begins with {_list(_words(doc))}"
    raise ConfigError(f"target = '{request.kind}:{wanted}': {problem}. Name another token.")


def _words(doc: Doc) -> list[str]:
    return [token.text for token in doc[:8]]


def _is_tagger(pipe: Any) -> bool:
    others = (Morphologizer, SentenceRecognizer)
    return isinstance(pipe, Tagger) and not isinstance(pipe, others) and is_softmax(pipe.model)


_PIPES: dict[Kind, Callable[[Any], bool]] = {
    "cats": lambda pipe: isinstance(pipe, TextCategorizer),
    "ents": lambda pipe: isinstance(pipe, DistilNER),
    "tag": _is_tagger,
    "pos": lambda pipe: isinstance(pipe, Morphologizer) and is_softmax(pipe.model),
}
_EXPLAINED = "Explained are textcat, textcat_multilabel, distil_ner, tagger and morphologizer."


def _advice(nlp: Language) -> str:
    if any(isinstance(pipe, EntityRecognizer) for _, pipe in nlp.pipeline):
        return (
            " spaCy's 'ner' takes one decision after another, so its entities have no probability: "
            "train a 'distil_ner', which has."
        )
    return ""


def _list(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"
