"""Small stock pipelines, trained for a few steps on generated documents."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import spacy
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example

NAMES = ["Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald"]
VERBS = {"SPORT": ["beat", "raced"], "FOOD": ["fed", "cooked"]}
NOUNS = {"SPORT": ["cup", "ball"], "FOOD": ["soup", "pie"]}
TOK2VEC = {
    "@architectures": "spacy.HashEmbedCNN.v2",
    "width": 48,
    "depth": 1,
    "embed_size": 500,
    "window_size": 1,
    "maxout_pieces": 2,
    "subword_features": True,
    "pretrained_vectors": None,
}
BAG_OF_WORDS = {"@architectures": "spacy.TextCatBOW.v3", "length": 4096, "ngram_size": 1}


@dataclass(frozen=True)
class Trained:
    """Saved pipelines and a test set.

    full: morphologizer, tagger, ner, textcat.
    seed: the same pipes with other weights.
    partial: ner and textcat_multilabel.
    test: annotated documents, different from the training documents.
    """

    full: Path
    seed: Path
    partial: Path
    test: Path


def make_docs(nlp: Language, n: int, seed: int) -> list[Doc]:
    """Documents of one to three sentences, with UPOS and XPOS tags, PERSONs and a topic."""
    rng = random.Random(seed)
    docs = []
    for _ in range(n):
        topic = rng.choice(["SPORT", "FOOD"])
        other = "FOOD" if topic == "SPORT" else "SPORT"
        words, pos, tags, ents = [], [], [], []
        for _ in range(rng.randint(1, 3)):
            kind = topic if rng.random() < 0.7 else other
            words += [rng.choice(NAMES), rng.choice(VERBS[kind]), "the"]
            words += [rng.choice(NOUNS[kind]), "."]
            pos += ["PROPN", "VERB", "DET", "NOUN", "PUNCT"]
            tags += ["NNP", "VBD", "DT", "NN", "."]
            # Nobody can learn these: a name without an entity, and a word of two parts of speech.
            ents += ["O" if rng.random() < 0.1 else "B-PERSON", "O", "O", "O", "O"]
            words.append("run")
            pos.append(rng.choice(["NOUN", "VERB"]))
            tags.append(rng.choice(["NN", "VB"]))
            ents.append("O")
            if rng.random() < 0.3:
                # Two tokens in spaCy.
                words.append("can't")
                pos.append("AUX")
                tags.append("MD")
                ents.append(rng.choice(["B-PERSON", "O"]))
        spaces = [True] * len(words)
        doc = Doc(nlp.vocab, words=words, spaces=spaces, pos=pos, tags=tags, ents=ents)
        doc.cats = {topic: 1.0, other: 0.0}
        docs.append(doc)
    return docs


def train(pipes: list[str], path: Path, *, seed: int, steps: int = 3) -> Path:
    """Train stock pipes for so few steps that they still err, and save them."""
    spacy.util.fix_random_seed(seed)
    nlp = spacy.blank("en")
    for pipe in pipes:
        if pipe.startswith("textcat"):
            exclusive = {"exclusive_classes": pipe == "textcat", "no_output_layer": False}
            nlp.add_pipe(pipe, config={"model": {**BAG_OF_WORDS, **exclusive}})
        else:
            nlp.add_pipe(pipe, config={"model": {"tok2vec": TOK2VEC}})
    examples = [Example(nlp.make_doc(doc.text), doc) for doc in make_docs(nlp, 30, seed)]
    optimizer = nlp.initialize(lambda: examples)
    for _ in range(steps):
        nlp.update(examples, sgd=optimizer, drop=0.0)
    nlp.to_disk(path)
    return path


def save(docs: list[Doc], path: Path) -> Path:
    DocBin(docs=docs, store_user_data=True).to_disk(path)
    return path


@cache
def train_all(directory: Path) -> Trained:
    """Train the pipelines of `Trained`, once in a session.

    directory: the base of all temporary directories.
    """
    directory = directory / "stock_pipelines"
    directory.mkdir()
    pipes = ["morphologizer", "tagger", "ner", "textcat"]
    return Trained(
        full=train(pipes, directory / "full", seed=0, steps=19),
        seed=train(pipes, directory / "seed", seed=1, steps=20),
        partial=train(["ner", "textcat_multilabel"], directory / "partial", seed=2, steps=18),
        test=save(make_docs(spacy.blank("en"), 40, seed=99), directory / "test.spacy"),
    )
