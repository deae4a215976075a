"""Pipes that learn the teacher's decisions, against their own update."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.tokens import Doc, Span
from spacy.training import Example
from thinc.api import fix_random_seed

from spacy_distil.distillation.pipeline.heads.base import PipeSettings
from spacy_distil.distillation.pipeline.heads.silver import SilverHead
from spacy_distil.errors import ConfigError
from spacy_distil.ner.schemes import tag_names
from tests.distillation.pipeline.util import (
    CNN,
    TEXTS,
    annotated_examples,
    assert_same,
    build_transitions,
    docs_of,
    entity_moves,
    fresh,
    gradients,
    learn,
    randomize,
    texts_of,
    train,
    trained_transitions,
    unlabelled,
    update,
    words_of,
)
from tests.util import adam

PAIRS = [("ner", "ner"), ("distil_ner", "ner"), ("ner", "distil_ner"), ("parser", "parser")]
ATTRIBUTES = ["ENT_IOB", "ENT_TYPE", "HEAD", "DEP", "SENT_START"]


def build_student(factory: str) -> Any:
    """A pipe with random weights, and its pipeline."""
    if factory != "distil_ner":
        nlp = build_transitions(factory, seed=5)
        return nlp, nlp.get_pipe(factory)
    fix_random_seed(5)
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy.Tagger.v2", "tok2vec": CNN}
    pipe: Any = nlp.add_pipe("distil_ner", config={"model": model})
    pipe.initialize(lambda: annotated_examples(nlp))
    randomize(pipe.model, 5)
    return nlp, pipe


@lru_cache
def build_teacher(factory: str) -> Any:
    """A pipe that has learned the annotated examples, and its pipeline. Leave them as they are."""
    if factory != "distil_ner":
        return trained_transitions(factory), trained_transitions(factory).get_pipe(factory)
    nlp, pipe = build_student(factory)
    train(nlp, steps=40)
    return nlp, pipe


def texts() -> list[list[str]]:
    known = [[t.text for t in eg.reference] for eg in annotated_examples(spacy.blank("en"))]
    return [*known, *map(list, TEXTS), words_of(150)]


def annotate(teacher: Any, words: Sequence[str], vocab: Any) -> Doc:
    """The teacher's predictions, set token by token with spaCy's own constructor."""
    doc = teacher(Doc(teacher.vocab, words=list(words)))
    if doc.has_annotation("DEP"):
        heads, deps = [t.head.i for t in doc], [t.dep_ for t in doc]
        return Doc(vocab, words=list(words), heads=heads, deps=deps)
    iob = [t.ent_iob_ + (f"-{t.ent_type_}" if t.ent_type_ else "") for t in doc]
    return Doc(vocab, words=list(words), ents=iob)


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_it_is_the_plain_update_on_what_the_teacher_predicts(student: str, teacher: str) -> None:
    nlp, pipe = build_student(student)
    source, source_pipe = build_teacher(teacher)
    head = SilverHead(pipe, source_pipe, PipeSettings())
    rows = texts()
    records = head.record(docs_of(source, rows))
    references = [annotate(source, words, nlp.vocab) for words in rows]
    assert (
        sum(len(set(doc.to_array(["ENT_TYPE", "DEP"]).ravel().tolist())) for doc in references) > 40
    )
    for drop in (0.0, 0.3):
        fix_random_seed(1)
        expected: dict[str, float] = {}
        docs = docs_of(nlp, rows)
        pipe.update(list(map(Example, docs, references)), drop=drop, losses=expected)
        expected_gradients = gradients(pipe.model)
        fix_random_seed(1)
        loss = update(head, unlabelled(nlp, rows), records, soft=1.0, drop=drop)
        assert {pipe.name: loss} == pytest.approx(expected)
        assert loss > 1
        assert_same(gradients(pipe.model), expected_gradients)


@pytest.mark.parametrize("factory", ["ner", "distil_ner", "parser"])
def test_records_follow_from_the_prediction_and_leave_docs_alone(factory: str) -> None:
    source, source_pipe = build_teacher(factory)
    head = SilverHead(source_pipe, source_pipe, PipeSettings())
    docs = docs_of(source, texts())
    before = [doc.to_bytes() for doc in docs]
    records = head.record(docs)
    assert [doc.to_bytes() for doc in docs] == before
    for name, field in head.fields.items():
        assert {each.dtype.name for each in records[name]} == {field.dtype}
        assert [each.shape for each in records[name]] == [(len(doc), field.width) for doc in docs]
    for i, doc in enumerate(map(source, docs)):
        if factory == "parser":
            labels = sorted(source_pipe.labels)
            assert [labels[k] for k in records["deps"][i][:, 0]] == [t.dep_ for t in doc]
            assert records["heads"][i][:, 0].tolist() == [t.head.i - t.i for t in doc]
        else:
            tags = tag_names(sorted(source_pipe.labels))
            expected = Example(doc, doc).get_aligned_ner()
            assert [tags[k] for k in records["tags"][i][:, 0]] == expected


def test_what_other_pipes_have_set_is_not_learned() -> None:
    nlp, pipe = build_teacher("distil_ner")
    head = SilverHead(pipe, pipe, PipeSettings())
    doc = Doc(nlp.vocab, words=["Ann", "visited", "New", "Rome", "in", "Acme", "Corp", "."])
    doc.set_ents([Span(doc, 5, 7, label="ORG")], blocked=[doc[0:1]], default="unmodified")
    tags = head.record([doc])["tags"][0][:, 0]
    assert tags[[0, 5, 6]].tolist() == [-1, -1, -1]
    assert (tags[[1, 2, 3, 4, 7]] >= 0).all()


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_annotation_comes_before_the_teachers_where_gold_is_on(student: str, teacher: str) -> None:
    nlp, pipe = build_student(student)
    source, source_pipe = build_teacher(teacher)
    head = SilverHead(pipe, source_pipe, PipeSettings())
    labelled = annotated_examples(nlp, 4, start=70)
    # Wrong on purpose, so that the teacher says something else.
    for example in labelled:
        rows = example.reference.to_array(ATTRIBUTES[:4])
        rows[:, 0], rows[:, 1] = 2, 0
        rows[:, 3] = nlp.vocab.strings["punct"]
        example.reference.from_array(ATTRIBUTES[:4], rows)
    bare = unlabelled(nlp, texts()[:4])
    rows = texts_of([*labelled, *bare])
    records = head.record(docs_of(source, rows))
    silver = [annotate(source, words, nlp.vocab) for words in rows]
    gold = [example.reference for example in labelled]
    unset = [example.reference for example in bare]
    losses = []
    for weights, references in [
        ({"soft": 1.0}, silver),
        ({"soft": 1.0, "gold": 1.0}, gold + silver[4:]),
        ({"gold": 1.0}, gold + unset),
    ]:
        batch = [fresh(example) for example in (*labelled, *bare)]
        loss, grads = learn(head, batch, records, **weights)
        pipe.update(list(map(Example, docs_of(nlp, rows), references)))
        assert_same(grads, gradients(pipe.model))
        losses.append(loss)
    assert len({round(loss, 2) for loss in losses}) == 3


@pytest.mark.parametrize("factory", ["ner", "distil_ner", "parser"])
def test_a_batch_without_anything_to_learn_is_passed_over(factory: str) -> None:
    nlp, pipe = build_student(factory)
    head = SilverHead(pipe, pipe, PipeSettings())
    empty, bare = unlabelled(nlp, [[], []]), unlabelled(nlp, [["Ann"]])
    nothing = head.record([example.predicted for example in empty])
    losses: dict[str, float] = {}
    head.update(empty, nothing, soft=1.0, gold=1.0, drop=0.0, losses=losses)
    head.update(bare, {}, soft=0.0, gold=1.0, drop=0.0, losses=losses)
    assert losses == {factory: 0.0}
    assert not gradients(pipe.model)


def test_a_student_comes_to_agree_with_its_teacher() -> None:
    nlp, pipe = build_student("distil_ner")
    source, source_pipe = build_teacher("ner")
    head = SilverHead(pipe, source_pipe, PipeSettings())
    rows = texts()
    records = head.record(docs_of(source, rows))
    optimizer = adam(1e-2)
    for _ in range(40):
        head.update(unlabelled(nlp, rows), records, soft=1.0, gold=0.0, drop=0.0, losses={})
        pipe.finish_update(optimizer)
    found, expected = (
        np.concatenate(
            [run(Doc(run.vocab, words=words)).to_array(ATTRIBUTES[:2]) for words in rows]
        )
        for run in (nlp, source)
    )
    assert (found == expected).all(axis=1).mean() > 0.95


def test_what_cannot_be_learned_is_refused() -> None:
    ner, parser = (
        build_transitions("ner").get_pipe("ner"),
        build_transitions("parser").get_pipe("parser"),
    )
    with pytest.raises(ConfigError, match=r"pipes\.ner\.weight = 0\.5"):
        SilverHead(ner, ner, PipeSettings(weight=0.5))
    with pytest.raises(ConfigError, match="'parser' a DependencyParser"):
        SilverHead(ner, parser, PipeSettings())
    other = build_transitions("ner", labels=entity_moves("PER")).get_pipe("ner")
    with pytest.raises(ConfigError, match="Only the student: LOC"):
        SilverHead(ner, other, PipeSettings())
    merging = build_transitions("parser", learn_tokens=True).get_pipe("parser")
    with pytest.raises(ConfigError, match="learn_tokens = true"):
        SilverHead(parser, merging, PipeSettings())
    head = SilverHead(ner, ner, PipeSettings())
    with pytest.raises(ConfigError, match=r"gold = 0\.3"):
        head.update([], {}, soft=1.0, gold=0.3, drop=0.0, losses={})
