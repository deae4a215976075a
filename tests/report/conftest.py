"""Small stock pipelines, trained for a few steps on generated documents."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example

NAMES = ["Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald"]
VERBS = {"SPORT": ["beat", "raced"], "FOOD": ["fed", "cooked"]}
NOUNS = {"SPORT": ["cup", "ball"], "FOOD": ["soup", "pie"]}

# An interpreter in whose environment only spaCy is installed.
BARE_PYTHON = """#!{python}
import os, runpy, sys
from importlib import metadata

GONE = ("spacy_distil", "psutil", "matplotlib", "torch", "transformers")

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in GONE:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
installed = metadata.distributions
metadata.distributions = lambda **kwargs: (
    each for each in installed(**kwargs)
    if each.name not in ("spacy-distil", "spacy-transformers", *GONE)
)
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Trained:
    """full: morphologizer, tagger, ner, textcat. seed: the same, with other weights.
    partial: ner and textcat_multilabel. test: annotated documents, unlike the training ones."""

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
            # What cannot be learned: a name that is none, and a word of two parts of speech.
            ents += ["O" if rng.random() < 0.1 else "B-PERSON", "O", "O", "O", "O"]
            words.append("run")
            pos.append(rng.choice(["NOUN", "VERB"]))
            tags.append(rng.choice(["NN", "VB"]))
            ents.append("O")
            if rng.random() < 0.3:
                # spaCy makes two tokens of it.
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
    bow = {"@architectures": "spacy.TextCatBOW.v3", "length": 4096, "ngram_size": 1}
    for pipe in pipes:
        exclusive = {"exclusive_classes": pipe == "textcat", "no_output_layer": False}
        model = {"model": {**bow, **exclusive}} if pipe.startswith("textcat") else {}
        nlp.add_pipe(pipe, config=model)
    examples = [Example(nlp.make_doc(doc.text), doc) for doc in make_docs(nlp, 30, seed)]
    optimizer = nlp.initialize(lambda: examples)
    for _ in range(steps):
        nlp.update(examples, sgd=optimizer, drop=0.0)
    nlp.to_disk(path)
    return path


def save(docs: list[Doc], path: Path) -> Path:
    DocBin(docs=docs, store_user_data=True).to_disk(path)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    directory = tmp_path_factory.mktemp("pipelines")
    pipes = ["morphologizer", "tagger", "ner", "textcat"]
    return Trained(
        full=train(pipes, directory / "full", seed=0, steps=20),
        seed=train(pipes, directory / "seed", seed=1, steps=12),
        partial=train(["ner", "textcat_multilabel"], directory / "partial", seed=2, steps=20),
        test=save(make_docs(spacy.blank("en"), 40, seed=99), directory / "test.spacy"),
    )


@pytest.fixture
def write_docs(tmp_path: Path) -> Callable[[list[Doc]], Path]:
    """Save docs to a .spacy file of this test."""
    return lambda docs: save(docs, tmp_path / "docs.spacy")


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that starts several times faster than one that has torch to import."""
    if os.name != "posix":
        pytest.skip("a script stands for an interpreter here")
    file = tmp_path_factory.mktemp("bare") / "python"
    file.write_text(BARE_PYTHON.format(python=sys.executable))
    file.chmod(0o755)
    return str(file)
