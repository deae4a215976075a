"""Kinds of pipes, and the labels of teacher and student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from spacy.attrs import DEP, ENT_TYPE, LEMMA, MORPH, POS, TAG  # type: ignore[import-not-found]
from spacy.language import Language
from spacy.morphology import Morphology  # type: ignore[import-not-found]
from spacy.parts_of_speech import NAMES as POS_NAMES  # type: ignore[import-not-found]
from spacy.pipeline import (
    DependencyParser,
    EditTreeLemmatizer,
    EntityRecognizer,
    Morphologizer,
    MultiLabel_TextCategorizer,
    SentenceRecognizer,
    Tagger,
    TextCategorizer,
)
from spacy.tokens import Doc
from spacy.training import Example

from spacy_distil.errors import ConfigError
from spacy_distil.ner.pipe import DistilNER
from spacy_distil.pairs.other import other_of
from spacy_distil.pairs.pair_pipe import DistilPair
from spacy_distil.pairs.qa_pipe import DistilQA
from spacy_distil.vectors.pairs import read_relations
from spacy_distil.vectors.pipe import DistilVectors

MAX_LISTED = 20

# The kinds of pipes that can learn from a teacher, by factory.
KINDS: Mapping[str, type] = {
    "tagger": Tagger,
    "morphologizer": Morphologizer,
    "senter": SentenceRecognizer,
    "trainable_lemmatizer": EditTreeLemmatizer,
    "parser": DependencyParser,
    "beam_parser": DependencyParser,
    "ner": EntityRecognizer,
    "beam_ner": EntityRecognizer,
    "distil_ner": DistilNER,
    "textcat": TextCategorizer,
    "textcat_multilabel": MultiLabel_TextCategorizer,
    "distil_vectors": DistilVectors,
    "distil_pair": DistilPair,
    "distil_qa": DistilQA,
}
# Factories of pipes that are initialized with the names of their labels.
_NAMED = ("tagger", "distil_ner", "textcat", "textcat_multilabel", "spancat", "distil_pair")
ENTITY_KINDS = (EntityRecognizer, DistilNER)
# The parser writes it between two labels of an arc that it has made projective.
_DECORATION = "||"


def kind_of(pipe: object) -> type | None:
    """Return the most special of the KINDS that a pipe is an instance of, or None."""
    kinds = [kind for kind in KINDS.values() if isinstance(pipe, kind)]
    return max(kinds, key=lambda kind: len(kind.__mro__), default=None)


def is_encoder(pipe: object) -> bool:
    """Tell whether a pipe is a layer that others listen to: spaCy's, ours or another plugin's."""
    return hasattr(pipe, "listeners") or hasattr(pipe, "listener_map")


def match_labels(name: str, student: Sequence[str], teacher: Sequence[str]) -> NDArray[np.int64]:
    """Return for each label of the teacher its number among the student's labels, (n_labels,).

    name: the student's name of the pipe, for the error.
    Raises ConfigError if the labels differ in more than their order.
    """
    if set(student) != set(teacher):
        raise ConfigError(
            f"Teacher and student have different labels for {name!r}.\n"
            f"Only the teacher: {list_labels(set(teacher) - set(student))}\n"
            f"Only the student: {list_labels(set(student) - set(teacher))}\n"
            "Leave the labels out of [initialize], so that the student takes the teacher's, or "
            f'set target = "gold" in [distillation.pipes.{name}].'
        )
    number = {label: i for i, label in enumerate(student)}
    return np.array([number[label] for label in teacher], dtype=np.int64)


def list_labels(labels: set[str]) -> str:
    """List labels for an error: sorted, and at most MAX_LISTED of them."""
    names = sorted(map(str, labels))
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return (", ".join(names[:MAX_LISTED]) or "none") + more


# From teacher to student


def labels_for(factory: str, teacher: Language, name: str) -> Any:
    """Return the labels of a teacher's pipe as `initialize` of the student's pipe takes them.

    factory: of the student's pipe.
    name: of the teacher's pipe.
    RETURNS: the labels as `spacy init labels` saves them. None if the teacher's pipe has no labels,
        or if its kind does not suit the student's pipe, which then learns from annotation alone and
        takes its labels from there.
    """
    pipe: Any = teacher.get_pipe(name)
    teacher_kind, student_kind = kind_of(pipe), KINDS.get(factory)
    if teacher_kind is None:
        return None
    if teacher_kind is student_kind or factory == teacher.get_pipe_meta(name).factory:
        return pipe.label_data
    if {teacher_kind, student_kind} == set(ENTITY_KINDS):
        types = list(pipe.labels)
        if student_kind is DistilNER:
            return types
        return _entity_moves(types)
    return None


def _entity_moves(types: Sequence[str]) -> Any:
    """Return the labels of an EntityRecognizer for types of entities."""
    moves: Any = EntityRecognizer.TransitionSystem
    return moves.get_actions(entity_types=types)


def output_names(pipe: Any) -> list[Any]:
    """Name the outputs of a pipe's model in their order.

    Outputs of the same name mean the same in any two pipelines.
    """
    if isinstance(pipe, (EntityRecognizer, DependencyParser)):
        return [pipe.moves.get_class_name(i) for i in range(pipe.moves.n_moves)]
    if isinstance(pipe, EditTreeLemmatizer):
        # Its labels are numbers of trees. The parts of a tree come before it. Trees that training
        # adds come after the last label.
        n_trees = max(pipe.labels, default=-1) + 1
        return [list(pipe.labels), pipe.label_data["trees"][:n_trees]]
    if isinstance(pipe, DistilNER):
        return pipe.tag_names
    return list(getattr(pipe, "labels", ()))


def declared_labels(factory: str, pipe: Any) -> Any:
    """Return the labels that a teacher's pipe of no known kind declares, as `labels_for` does.

    RETURNS: None if it declares none, or the student's pipe takes more than their names.
    """
    labels = getattr(pipe, "labels", ())
    names = list(labels) if isinstance(labels, list | tuple | set | frozenset) else []
    if not names or not all(isinstance(label, str) for label in names):
        return None
    names = sorted(names) if isinstance(labels, set | frozenset) else names
    if KINDS.get(factory) is EntityRecognizer:
        return _entity_moves(names)
    return names if factory in _NAMED else None


def tree_strings(nlp: Language) -> set[str]:
    """Return the strings in the edit trees of lemmatizers, which are not among their labels."""
    trees = (p.label_data["trees"] for _, p in nlp.pipeline if isinstance(p, EditTreeLemmatizer))
    return {
        value for each in trees for tree in each for value in tree.values() if type(value) is str
    }


# From gold annotation


def unknown_labels(pipe: Any, examples: Sequence[Example]) -> tuple[set[str], set[str]]:
    """Find the labels in the gold annotation that a pipe does not have.

    Labels that the pipe itself ignores do not count: missing annotation, and labels of the parser
    that are rarer than `min_action_freq`. Some pipes, such as a senter, have no unknown labels.

    RETURNS (unknown, known): labels that the pipe does not have, and all that it has.
    """
    kind = kind_of(pipe)
    if kind is DependencyParser:
        return _unknown_dependencies(pipe, examples)
    read = _GOLD.get(kind) if kind is not None else None
    known = set(map(str, getattr(pipe, "labels", ())))
    if read is None:
        return set(), known
    return read(pipe, [example.reference for example in examples]) - known, known


def has_annotation(pipe: Any, examples: Sequence[Example]) -> bool:
    """Tell whether the gold annotation has labels for a pipe to learn. Of unknown kinds, assume so.

    A `textcat` needs two: it cannot choose among fewer.
    """
    kind = kind_of(pipe)
    docs = [example.reference for example in examples]
    if kind is None:
        return True
    if kind is DistilVectors:
        return bool(read_relations(examples))
    if kind is DistilQA:
        return any(target is not None for e in examples for target in pipe.read_targets(e)[1])
    if kind is SentenceRecognizer:
        # To spaCy a doc of one token is a sentence, annotated or not.
        return any(len(doc) > 1 and doc.has_annotation("SENT_START") for doc in docs)
    if kind is DependencyParser:
        return bool(_values(docs, DEP))
    if kind is EditTreeLemmatizer:
        return bool(_values(docs, LEMMA))
    return len(_GOLD[kind](pipe, docs)) > (kind is TextCategorizer)


def _tags(pipe: Any, docs: Sequence[Doc]) -> set[str]:
    # A prefix marks a tag that is known to be wrong.
    return {tag.removeprefix(pipe.cfg["neg_prefix"]) for tag in _values(docs, TAG)}


def _morphology(pipe: Any, docs: Sequence[Doc]) -> set[str]:
    return {label for doc in docs for label in morphology_labels(doc) if label}


def morphology_labels(doc: Doc) -> list[str]:
    """Return for each token the label of a morphologizer: features and part of speech.

    It is "" for a token that has neither: the annotation is missing.
    """
    strings, morphology = doc.vocab.strings, doc.vocab.morphology
    rows, places = np.unique(doc.to_array([POS, MORPH]), axis=0, return_inverse=True)
    labels = []
    for pos, morph in rows.tolist():
        features = Morphology.feats_to_dict(strings[morph])
        if pos:
            features[Morphologizer.POS_FEAT] = POS_NAMES[pos]
        labels.append(strings[morphology.add(features)] if pos or morph else "")
    return [labels[place] for place in places.ravel().tolist()]


def _entity_types(pipe: Any, docs: Sequence[Doc]) -> set[str]:
    return _values(docs, ENT_TYPE)


def _cats(pipe: Any, docs: Sequence[Doc]) -> set[str]:
    return {label for doc in docs for label in doc.cats}


def _cats_of_pairs(pipe: Any, docs: Sequence[Doc]) -> set[str]:
    return _cats(pipe, [doc for doc in docs if other_of(doc, pipe.cfg["other"]) is not None])


_GOLD: Mapping[type, Callable[[Any, Sequence[Doc]], set[str]]] = {
    Tagger: _tags,
    Morphologizer: _morphology,
    EntityRecognizer: _entity_types,
    DistilNER: _entity_types,
    TextCategorizer: _cats,
    MultiLabel_TextCategorizer: _cats,
    DistilPair: _cats_of_pairs,
}


def _unknown_dependencies(pipe: Any, examples: Sequence[Example]) -> tuple[set[str], set[str]]:
    known = _plain(pipe.moves.labels)
    docs = [example.reference for example in examples]
    frequent = _values(docs, DEP, at_least=pipe.cfg["min_action_freq"])
    # The parser has a single spelling for the label of a root.
    if not {"ROOT" if label.upper() == "ROOT" else label for label in frequent} - known:
        return set(), known
    # The parser counts by direction and with projective arcs, so some labels may still be rare.
    actions = pipe.moves.get_actions(
        examples=examples,
        min_freq=pipe.cfg["min_action_freq"],
        learn_tokens=pipe.cfg["learn_tokens"],
    )
    return _plain(actions) - known, known


def _plain(actions: Mapping[Any, Mapping[str, int]]) -> set[str]:
    """Return the labels of a parser's moves without their decoration."""
    labels = {label.split(_DECORATION)[0] for by_label in actions.values() for label in by_label}
    return labels - {""}


def _values(docs: Sequence[Doc], attr: int, *, at_least: int = 1) -> set[str]:
    """Return the values of a string attribute that occur on at least `at_least` tokens."""
    if not docs:
        return set()
    keys, counts = np.unique(
        np.concatenate([doc.to_array(attr) for doc in docs]), return_counts=True
    )
    strings = docs[0].vocab.strings
    return {strings[key] for key in keys[(counts >= at_least) & (keys != 0)].tolist()}
