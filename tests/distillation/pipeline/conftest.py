"""A small trained teacher of all kinds of pipes, and the docs that it has learned."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import fix_random_seed

from tests.util import LISTENER, adam, head_config

# The teacher's pipes after the encoder, in their order.
PIPES = (
    "morphologizer",
    "tagger",
    "trainable_lemmatizer",
    "parser",
    "ner",
    "textcat",
    "senter",
)
# word, tag, part of speech, features, lemma, head within the sentence, dependency, entity
TRAVEL = """
    {person}   NNP  PROPN  Number=Sing              {person}  1  nsubj  U-PER
    visited    VBD  VERB   Tense=Past|VerbForm=Fin  visit     1  ROOT   O
    New        NNP  PROPN  Number=Sing              New       3  compound  B-LOC
    {place}    NNP  PROPN  Number=Sing              {place}   1  dobj   L-LOC
    .          .    PUNCT  _                        .         1  punct  O
"""
FOOD = """
    We         PRP  PRON   Number=Plur              we        1  nsubj  O
    paid       VBD  VERB   Tense=Past|VerbForm=Fin  pay       1  ROOT   O
    $          $    SYM    _                        $         3  nmod   O
    20         CD   NUM    NumType=Card             20        1  dobj   O
    in         IN   ADP    _                        in        1  prep   O
    {place}    NNP  PROPN  Number=Sing              {place}   4  pobj   U-LOC
"""
PEOPLE, PLACES = ("Ann", "Bob", "Zoë"), ("Rome", "Oslo", "Zürich")


def annotated_examples(nlp: Language, n: int = 12, *, start: int = 0) -> list[Example]:
    """Docs of one or two sentences, with every annotation that some pipe learns from."""
    return [_annotated_example(nlp, random.Random(i)) for i in range(start, start + n)]


def _annotated_example(nlp: Language, rng: random.Random) -> Example:
    rows: list[list[str]] = []
    heads: list[int] = []
    starts: list[int] = []
    kinds = rng.choices([TRAVEL, FOOD], k=rng.choice([1, 2]))
    for kind in kinds:
        text = kind.format(person=rng.choice(PEOPLE), place=rng.choice(PLACES))
        sentence = [line.split() for line in text.strip().splitlines()]
        heads += [len(rows) + int(row[5]) for row in sentence]
        starts += [1] + [-1] * (len(sentence) - 1)
        rows += sentence
    words, tags, pos, morphs, lemmas, _, deps, entities = map(list, zip(*rows, strict=True))
    annotation = {
        "words": words,
        "tags": tags,
        "pos": pos,
        "morphs": morphs,
        "lemmas": lemmas,
        "heads": heads,
        "deps": deps,
        "sent_starts": starts,
        "entities": entities,
        "cats": {"travel": float(kinds[0] is TRAVEL), "food": float(kinds[0] is FOOD)},
    }
    return Example.from_dict(Doc(nlp.vocab, words=words), annotation)


def pipe_config(pipe: str) -> dict[str, Any]:
    """The settings of a small pipe that listens."""
    if pipe == "parser":
        model = {**head_config("ner", LISTENER)["model"], "state_type": "parser"}
        return {"model": model, "min_action_freq": 1}
    if pipe in ("senter", "distil_ner"):
        return head_config("tagger", LISTENER)
    if pipe == "trainable_lemmatizer":
        return {**head_config("tagger", LISTENER), "min_tree_freq": 1}
    return head_config(pipe, LISTENER)


def build_pipeline(
    encoder: Path, pipes: Sequence[str] | Mapping[str, str], **settings: Any
) -> Language:
    """A pipeline that is not initialized yet.

    encoder: directory of the encoder of its component "transformer".
    pipes: factories, or names and factories.
    settings: of the encoder.
    """
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy-distil.DistilTransformer.v1", "name": str(encoder)}
    nlp.add_pipe("distil_transformer", name="transformer", config={"model": {**model, **settings}})
    factories = pipes if isinstance(pipes, Mapping) else dict(zip(pipes, pipes, strict=True))
    for name, factory in factories.items():
        nlp.add_pipe(factory, name=name, config=pipe_config(factory))
    return nlp


def train_pipeline(
    encoder: Path, pipes: Sequence[str] | Mapping[str, str], *, steps: int
) -> Language:
    """A pipeline that has learned `annotated_examples`."""
    fix_random_seed(0)
    nlp = build_pipeline(encoder, pipes)
    examples, optimizer = annotated_examples(nlp), adam(5e-3)
    nlp.initialize(lambda: examples)
    for _ in range(steps):
        nlp.update([Example(nlp.make_doc(eg.text), eg.reference) for eg in examples], sgd=optimizer)
    return nlp


@pytest.fixture(scope="session")
def teacher(bert_dir: Path) -> Language:
    """A pipeline of two layers, 32 wide, and of PIPES, trained for a while. Leave it as it is."""
    return train_pipeline(bert_dir, PIPES, steps=20)


@pytest.fixture
def examples(teacher: Language) -> list[Example]:
    """A dozen annotated docs of the teacher's vocab, which it has been trained on."""
    return annotated_examples(teacher)


@pytest.fixture
def make_examples_for() -> Callable[..., list[Example]]:
    """`make_examples_for(nlp, n, start=0)`: annotated docs of the vocab of `nlp`."""
    return annotated_examples
