"""Pipelines, documents and gradients that the tests of pipeline distillation share."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import spacy
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from thinc.api import Config, Model, fix_random_seed

from spacy_distil.distillation.pipeline.heads import Head, PipeSettings
from tests.util import LISTENER, adam, head_config

H = TypeVar("H", bound=Head)
Gradients = dict[tuple[int, str], np.ndarray]

# Pipelines on an encoder of ours, and docs that they learn

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


def write_corpus(directory: Path, nlp: Language) -> None:
    """`train.spacy`, `dev.spacy` and `text.jsonl` of a small corpus."""
    docs = [example.reference for example in annotated_examples(nlp, 16)]
    DocBin(docs=docs[:12], store_user_data=True).to_disk(directory / "train.spacy")
    DocBin(docs=docs[12:], store_user_data=True).to_disk(directory / "dev.spacy")
    texts = [{"text": example.text} for example in annotated_examples(nlp, 10, start=30)]
    (directory / "text.jsonl").write_text("\n".join(map(json.dumps, texts)), encoding="utf8")


def student_config(encoder: Path, corpus: Path, pipes: Sequence[str]) -> Config:
    """A student like the teacher, for the corpus that `write_corpus` wrote."""
    config = build_pipeline(encoder, pipes).config.copy()
    reader = {"@readers": "spacy.Corpus.v1"}
    text = {"@readers": "spacy-distil.Texts.v1", "path": str(corpus / "text.jsonl")}
    config["corpora"] = {
        "train": {**reader, "path": str(corpus / "train.spacy")},
        "dev": {**reader, "path": str(corpus / "dev.spacy")},
        "text": text,
    }
    config["training"] |= {
        "max_steps": 12,
        "eval_frequency": 4,
        "patience": 0,
        "dropout": 0.1,
        "batcher": {
            "@batchers": "spacy.batch_by_words.v1",
            "size": 60,
            "tolerance": 0.2,
            "discard_oversize": False,
        },
        "optimizer": {
            "@optimizers": "Adam.v1",
            "learn_rate": {
                "@schedules": "warmup_linear.v1",
                "warmup_steps": 2,
                "total_steps": 20,
                "initial_rate": 1e-3,
            },
            "use_averages": False,
        },
        "score_weights": {"tag_acc": 0.5, "ents_f": 0.5},
    }
    config["distillation"] = {
        "corpus": "corpora.text",
        "student": {"n_layers": 1},
        "stages": {"hidden": {"share": 0.34}, "soft": {"share": 0.33}, "gold": {"share": 0.33}},
    }
    return config


# Small pipelines with random weights

CNN = {
    "@architectures": "spacy.HashEmbedCNN.v2",
    "pretrained_vectors": None,
    "width": 16,
    "depth": 1,
    "embed_size": 200,
    "window_size": 1,
    "maxout_pieces": 2,
    "subword_features": False,
}
STOCK_LISTENER = {"@architectures": "spacy.Tok2VecListener.v1", "width": 16}


def randomize(model: Model, seed: int, scale: float = 0.4) -> None:
    """Draw all parameters from a normal distribution."""
    rng = np.random.default_rng(seed)
    for node in model.walk():
        for name in node.param_names:
            if node.has_param(name):
                node.set_param(name, rng.normal(0, scale, node.get_param(name).shape).astype("f"))


def build_transitions(
    kind: str, *, tok2vec: dict[str, Any] = CNN, upper: bool = False, seed: int = 0, **settings: Any
) -> Any:
    """A small pipeline with random weights: spaCy's own start at zero below the scores.

    settings: of the pipe, or of its model where they have these names.
    """
    fix_random_seed(seed)
    nlp = spacy.blank("en")
    if tok2vec is STOCK_LISTENER:
        encoder: Any = nlp.add_pipe("tok2vec", config={"model": CNN})
        encoder.model.initialize()
    model = {
        "@architectures": "spacy.TransitionBasedParser.v2",
        "state_type": kind,
        "extra_state_tokens": settings.pop("extra_state_tokens", False),
        "hidden_width": 12,
        "maxout_pieces": settings.pop("maxout_pieces", 2),
        "use_upper": upper,
        "tok2vec": tok2vec,
    }
    labels = settings.pop("labels", None)
    factory = settings.pop("factory", kind)
    if kind == "parser":
        settings["min_action_freq"] = 1
    pipe: Any = nlp.add_pipe(factory, name=kind, config={"model": model, **settings})
    examples = annotated_examples(nlp)
    pipe.initialize(lambda: examples, labels=labels)
    randomize(pipe.model, seed)
    return nlp


def entity_moves(*labels: str) -> Any:
    """The labels of a `ner`, as its `initialize` takes them."""
    return spacy.blank("en").add_pipe("ner").moves.get_actions(entity_types=labels)


@lru_cache
def trained_transitions(kind: str, upper: bool = False) -> Any:
    """A pipeline that has learned the annotated examples. Leave it as it is."""
    nlp = build_transitions(kind, upper=upper)
    train(nlp, steps=40)
    return nlp


def train(nlp: Any, *, steps: int) -> None:
    """Let an initialized pipeline learn the annotated examples."""
    optimizer, examples = adam(1e-2), annotated_examples(nlp)
    for _ in range(steps):
        nlp.update([fresh(example) for example in examples], sgd=optimizer)


# Docs and examples of any pipeline


def words_of(n: int, *, seed: int = 0) -> list[str]:
    """Random words of the annotated examples."""
    known = sorted({t.text for eg in annotated_examples(spacy.blank("en")) for t in eg.reference})
    return random.Random(seed).choices(known, k=n)


# With docs that have no token, or nothing but whitespace.
TEXTS = [words_of(23, seed=1), [], words_of(1, seed=2), ["\n"], words_of(61, seed=3), [" ", "Ann"]]


def texts_of(examples: Sequence[Example]) -> list[list[str]]:
    return [[token.text for token in example.predicted] for example in examples]


def docs_of(nlp: Any, texts: Sequence[Sequence[str]]) -> list[Doc]:
    return [Doc(nlp.vocab, words=list(words)) for words in texts]


def unlabelled(nlp: Any, texts: Sequence[Sequence[str]]) -> list[Example]:
    """Examples without annotation."""
    return [Example(doc, doc.copy()) for doc in docs_of(nlp, texts)]


def fresh(example: Example) -> Example:
    """The same example without predictions."""
    doc = example.predicted
    return Example(Doc(doc.vocab, words=[t.text for t in doc]), example.reference)


# Heads


def head_of(kind: type[H], student: Any, teacher: Any, /, **settings: Any) -> H:
    """The head of the last pipes of two pipelines."""
    pipes = [nlp.get_pipe(nlp.pipe_names[-1]) for nlp in (student, teacher)]
    return kind(*pipes, PipeSettings(**settings))


def record(head: Head, teacher: Any, examples: Sequence[Example]) -> Any:
    """The teacher's records of the same words."""
    return head.record(docs_of(teacher, texts_of(examples)))


def update(
    head: Head,
    examples: Sequence[Example],
    records: Any,
    *,
    soft: float = 0.0,
    gold: float = 0.0,
    drop: float = 0.0,
) -> float:
    """Update a head. RETURNS: the loss."""
    losses: dict[str, float] = {}
    head.update(examples, records, soft=soft, gold=gold, drop=drop, losses=losses)
    assert list(losses) == [head.name]
    return losses[head.name]


def learn(
    head: Head, examples: Sequence[Example], records: Any, **weights: float
) -> tuple[float, Gradients]:
    """Update a head. RETURNS (loss, gradients)."""
    loss = update(head, examples, records, **weights)
    return loss, gradients(head.student.model)


def gradients(model: Model) -> Gradients:
    """Take all gradients that are not zero. From now on there are none."""
    taken = {}
    for i, node in enumerate(model.walk()):
        for name in node.param_names:
            if node.has_grad(name):
                taken[i, name] = node.get_grad(name).copy()
                node.set_grad(name, np.zeros_like(node.get_grad(name)))
    return {key: grad for key, grad in taken.items() if grad.any()}


def parameters(model: Model) -> Gradients:
    """Copies of all parameters, with the keys of `gradients`."""
    return {
        (i, name): node.get_param(name).copy()
        for i, node in enumerate(model.walk())
        for name in node.param_names
    }


def norm(grads: Gradients) -> float:
    return float(np.sqrt(sum((grad**2).sum() for grad in grads.values())))


def assert_same(
    left: Mapping[Any, np.ndarray], right: Mapping[Any, np.ndarray], scale: float = 1
) -> None:
    """Compare gradients, relative to the largest value of each. There must be some."""
    assert left.keys() == right.keys()
    assert left
    for key, grad in left.items():
        largest = np.abs(right[key]).max()
        np.testing.assert_allclose(grad, scale * right[key], rtol=1e-3, atol=1e-5 * largest)
