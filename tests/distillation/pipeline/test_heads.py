"""Which pipe learns from which, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.language import Language
from spacy.pipeline import Tagger
from spacy.training import Example
from thinc.api import Linear, chain, fix_random_seed, with_array

from spacy_distil.distillation.pipeline.heads import PipeSettings, find_pairs, plan_heads
from spacy_distil.distillation.pipeline.heads.silver import SilverHead
from spacy_distil.distillation.pipeline.heads.softmax import SoftmaxHead
from spacy_distil.distillation.pipeline.heads.textcat import TextcatHead
from spacy_distil.distillation.pipeline.heads.transitions import TransitionHead
from spacy_distil.distillation.pipeline.labels import (
    KINDS,
    kind_of,
    labels_for,
    match_labels,
    output_names,
)
from spacy_distil.errors import ConfigError
from tests.distillation.pipeline.util import (
    CNN,
    annotated_examples,
    assert_same,
    build_pipeline,
    build_transitions,
    entity_moves,
    fresh,
    gradients,
    pipe_config,
    randomize,
    unlabelled,
    words_of,
)
from tests.test_light_import import run_python

TOKEN_PIPES = ("tagger", "morphologizer", "senter", "trainable_lemmatizer")


def pipeline(encoder: Path, pipes: dict[str, str]) -> Language:
    nlp = build_pipeline(encoder, pipes)
    nlp.initialize(lambda: annotated_examples(nlp))
    return nlp


@pytest.fixture(scope="module")
def all_kinds(bert_dir: Path) -> Language:
    """A teacher of every kind of pipe."""
    kinds = {name: name for name in (*TOKEN_PIPES, "parser", "ner", "distil_ner")}
    return pipeline(bert_dir, {**kinds, "textcat": "textcat", "multi": "textcat_multilabel"})


@pytest.mark.parametrize(
    ("factory", "source", "head"),
    [
        *((name, name, SoftmaxHead) for name in (*TOKEN_PIPES, "distil_ner")),
        ("textcat", "textcat", TextcatHead),
        ("textcat_multilabel", "multi", TextcatHead),
        ("parser", "parser", TransitionHead),
        ("ner", "ner", TransitionHead),
        ("ner", "distil_ner", SilverHead),
        ("distil_ner", "ner", SilverHead),
    ],
)
def test_the_head_suits_the_kinds_of_the_pipes(
    all_kinds: Language, bert_dir: Path, factory: str, source: str, head: type
) -> None:
    student = pipeline(bert_dir, {"own": factory})
    pipes = {"own": PipeSettings(teacher=source, temperature=2.0, weight=1)}
    plan = plan_heads(student, all_kinds, pipes)
    assert plan.gold == {}
    own: Any = plan.heads["own"]
    assert type(own) is head
    assert own.name == "own"
    assert own.student is student.get_pipe("own")
    assert own.teacher is all_kinds.get_pipe(source)
    assert (own.settings.temperature, own.settings.weight) == (2.0, 1)


@pytest.mark.parametrize(
    ("factory", "target", "head"),
    [
        ("ner", "soft", TransitionHead),
        ("ner", "silver", SilverHead),
        ("distil_ner", "soft", SoftmaxHead),
        ("distil_ner", "silver", SilverHead),
        ("parser", "silver", SilverHead),
        ("tagger", "gold", None),
    ],
)
def test_the_target_of_the_settings(
    all_kinds: Language, bert_dir: Path, factory: str, target: Any, head: type | None
) -> None:
    student = pipeline(bert_dir, {factory: factory})
    plan = plan_heads(student, all_kinds, {factory: PipeSettings(target=target)})
    assert plan.gold == ({} if head else {factory: None})
    assert {name: type(each) for name, each in plan.heads.items()} == (
        {factory: head} if head else {}
    )


def test_a_pipe_without_a_teacher_learns_from_gold(all_kinds: Language, bert_dir: Path) -> None:
    student = build_pipeline(bert_dir, {"tagger": "tagger", "other": "tagger"})
    student.add_pipe("sentencizer")
    student.initialize(lambda: annotated_examples(student))
    plan = plan_heads(student, all_kinds, {})
    assert list(plan.heads) == ["tagger"]  # neither the encoder nor the sentencizer
    assert (plan.gold, plan.alone) == ({"other": None}, {})


def test_frozen_pipes_do_not_learn(all_kinds: Language, bert_dir: Path) -> None:
    student = pipeline(bert_dir, {"tagger": "tagger", "senter": "senter", "other": "tagger"})
    plan = plan_heads(student, all_kinds, {}, frozen=["tagger", "other"])
    assert (list(plan.heads), plan.gold) == (["senter"], {})
    with pytest.raises(ConfigError, match=r"pipes.tagger\]: .* frozen_components"):
        plan_heads(student, all_kinds, {"tagger": PipeSettings()}, frozen=["tagger"])


def test_any_encoder_is_no_head(teacher: Language) -> None:
    student = spacy.blank("en")
    student.add_pipe("tok2vec", name="encoder")
    listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": 96}
    model = {"@architectures": "spacy.Tagger.v2", "tok2vec": listener}
    student.add_pipe("tagger", config={"model": model})
    student.initialize(lambda: annotated_examples(student))
    plan = plan_heads(student, teacher, {})
    assert (list(plan.heads), plan.gold) == (["tagger"], {})
    with pytest.raises(ConfigError, match=r"pipes.encoder\].*learns through the pipes that listen"):
        plan_heads(student, teacher, {"encoder": PipeSettings()})


@pytest.mark.parametrize(
    ("pipe", "settings", "problem"),
    [
        ("tagger", PipeSettings(target="silver"), r"target = 'silver'.*only be 'soft' or 'gold'"),
        (
            "entities",
            PipeSettings(teacher="distil_ner", target="soft"),
            r"target = 'soft': 'entities' of the student is a 'ner', 'distil_ner' of the teacher "
            r"a 'distil_ner', so target can only be 'silver' or 'gold'",
        ),
        ("tagger", PipeSettings(teacher="parser"), r"tagger.teacher = 'parser'.* only be 'gold'"),
        (
            "tagger",
            PipeSettings(teacher="nobody"),
            r"tagger.teacher = 'nobody'.*'morphologizer', 'senter'",
        ),
        ("tagger", PipeSettings(teacher="nobody", target="gold"), r"tagger.teacher = 'nobody'"),
        (
            "entities",
            PipeSettings(target="soft"),
            r"has no pipe 'entities'.* pipes, 'tagger', .*gold",
        ),
        (
            "tag",
            PipeSettings(),
            r"pipes.tag\]: the student has no such pipe.*'tagger', 'ner', 'ent",
        ),
        ("sentencizer", PipeSettings(), r"sentencizer\]: this pipe is not trainable"),
        ("transformer", PipeSettings(), r"transformer\]: this pipe is the encoder"),
    ],
)
def test_settings_that_cannot_work(
    all_kinds: Language, bert_dir: Path, pipe: str, settings: PipeSettings, problem: str
) -> None:
    # The teacher's `ner` has a pupil of its own name.
    student = build_pipeline(bert_dir, {"tagger": "tagger", "ner": "ner", "entities": "ner"})
    student.add_pipe("sentencizer")
    student.initialize(lambda: annotated_examples(student))
    with pytest.raises(ConfigError, match=problem):
        plan_heads(student, all_kinds, {pipe: settings})


def test_pairs_are_those_with_heads_in_the_plan(all_kinds: Language, bert_dir: Path) -> None:
    student = pipeline(
        bert_dir, {"tagger": "tagger", "second": "tagger", "senter": "senter", "new": "tagger"}
    )
    pipes = {"second": PipeSettings(teacher="tagger"), "senter": PipeSettings(target="gold")}
    pairs = find_pairs(student, all_kinds, pipes).sources
    assert pairs == {"tagger": "tagger", "second": "tagger"}
    assert list(plan_heads(student, all_kinds, pipes).heads) == list(pairs)


def stock(**factories: str) -> Language:
    """A pipeline of pipes that are not initialized, by their names."""
    nlp = spacy.blank("en")
    for name, factory in factories.items():
        nlp.add_pipe(factory, name=name)
    return nlp


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        # A name of its own, and one candidate on each side.
        ({"tags": "tagger"}, {"tagger": "tagger"}, {"tags": "tagger"}),
        ({"ner": "ner"}, {"distil_ner": "distil_ner"}, {"ner": "distil_ner"}),
        ({"ner": "distil_ner"}, {"entities": "ner"}, {"ner": "entities"}),
        ({"cats": "textcat"}, {"textcat": "textcat_multilabel"}, {}),
        # The same kind before one that suits, too.
        ({"a": "ner"}, {"b": "distil_ner", "c": "ner"}, {"a": "c"}),
        # A name that stands for something else on the other side.
        (
            {"tags": "tagger", "pos": "morphologizer"},
            {"tags": "morphologizer", "pos": "tagger"},
            {"tags": "pos", "pos": "tags"},
        ),
        # A pipe that is taught already is no candidate.
        ({"tagger": "tagger", "tags": "tagger"}, {"tagger": "tagger"}, {"tagger": "tagger"}),
        (
            {"tagger": "tagger", "b": "tagger"},
            {"tagger": "tagger", "c": "tagger"},
            {"tagger": "tagger", "b": "c"},
        ),
    ],
)
def test_pairs_of_other_names_by_kind(
    student: dict[str, str], teacher: dict[str, str], expected: dict[str, str]
) -> None:
    pairing = find_pairs(stock(**student), stock(**teacher), {})
    assert (pairing.sources, pairing.alone) == (expected, {})
    assert pairing.unused == [name for name in teacher if name not in expected.values()]


@pytest.mark.parametrize(
    ("student", "teacher", "alone"),
    [
        ({"x": "ner"}, {"a": "ner", "b": "ner"}, ["x"]),
        ({"x": "ner", "y": "distil_ner"}, {"a": "beam_ner"}, ["x", "y"]),
    ],
)
def test_several_candidates_need_a_setting(
    student: dict[str, str], teacher: dict[str, str], alone: list[str]
) -> None:
    own, theirs = stock(**student), stock(**teacher)
    pairing = find_pairs(own, theirs, {})
    assert pairing.sources == {}
    assert list(pairing.alone) == alone
    for name in alone:
        assert f"Set teacher in [distillation.pipes.{name}]" in pairing.alone[name]
        assert all(repr(each) in pairing.alone[name] for each in (*student, *teacher))
    pipes = {"x": PipeSettings(teacher="a")}
    assert find_pairs(own, theirs, pipes).sources == {"x": "a"}
    assert find_pairs(own, theirs, {}, frozen=alone[1:]).sources == (
        {} if len(teacher) > 1 else {"x": "a"}
    )


def test_pipes_of_the_teacher_that_nobody_takes() -> None:
    teacher = stock(tok2vec="tok2vec", tagger="tagger", sentencizer="sentencizer", spans="spancat")
    teacher.add_pipe("attribute_ruler")
    student = stock(tagger="tagger", sentencizer="sentencizer", attribute_ruler="tagger")
    assert find_pairs(student, teacher, {}).unused == ["spans", "attribute_ruler"]
    pipes = {"tagger": PipeSettings(target="gold")}
    frozen = find_pairs(student, teacher, pipes, frozen=["attribute_ruler"])
    assert frozen.unused == ["spans", "attribute_ruler"]  # the tagger is told as one of gold


def test_a_head_of_another_name_records_its_own_teacher(
    all_kinds: Language, bert_dir: Path
) -> None:
    student = pipeline(bert_dir, {"tags": "tagger"})
    plan = plan_heads(student, all_kinds, {})
    head = plan.heads["tags"]
    assert head.teacher is all_kinds.get_pipe("tagger")
    assert head.settings.source("tags") == "tagger"
    assert "'tagger'" in head.source
    assert "ner" in plan.unused


# The first target that is possible


@pytest.mark.parametrize(
    ("kind", "settings", "head", "problem"),
    [
        ("ner", {}, TransitionHead, None),
        ("ner", {"factory": "beam_ner", "beam_width": 4}, SilverHead, "has beam_width = 4"),
        ("ner", {"maxout_pieces": 1}, SilverHead, "has maxout_pieces = 1"),
        ("parser", {"maxout_pieces": 1}, SilverHead, "has maxout_pieces = 1"),
        ("parser", {"maxout_pieces": 1, "learn_tokens": True}, None, "has maxout_pieces = 1"),
    ],
)
def test_auto_takes_the_next_best_target(
    kind: str, settings: dict[str, Any], head: type | None, problem: str | None
) -> None:
    student, teacher = build_transitions(kind, seed=1), build_transitions(kind, **settings)
    plan = plan_heads(student, teacher, {})
    assert [type(each) for each in plan.heads.values()] == ([head] if head else [])
    assert plan.gold == ({} if head else {kind: None})
    if problem:
        with pytest.raises(ConfigError, match=problem):
            plan_heads(student, teacher, {kind: PipeSettings(target="soft")})
    if head is None:
        with pytest.raises(ConfigError, match="learn_tokens = true"):
            plan_heads(student, teacher, {kind: PipeSettings(target="silver")})
        with pytest.raises(ConfigError, match="learn_tokens = true"):
            plan_heads(student, teacher, {kind: PipeSettings(teacher=kind)})


def test_a_tagger_without_softmax_learns_from_gold() -> None:
    student, teacher = alone("tagger"), alone("tagger")
    pipe: Any = teacher.get_pipe("tagger")
    layer: Any = with_array(Linear(len(pipe.labels), 16))
    pipe.model = chain(pipe.model.get_ref("tok2vec"), layer)
    plan = plan_heads(student, teacher, {})
    assert (plan.heads, plan.gold) == ({}, {"tagger": None})
    for settings in (PipeSettings(target="soft"), PipeSettings(teacher="tagger")):
        with pytest.raises(ConfigError, match="ends in a layer 'linear'"):
            plan_heads(student, teacher, {"tagger": settings})


def test_other_labels_are_an_error_where_the_target_is_chosen_too() -> None:
    student = build_transitions("ner", labels=entity_moves("PER"))
    with pytest.raises(ConfigError, match=r"Only the teacher: .*LOC"):
        plan_heads(student, build_transitions("ner"), {})


# Annotation alone, on text of which some has none


def alone(factory: str) -> Language:
    """A pipeline of one pipe with random weights, and with a small encoder of its own."""
    fix_random_seed(0)
    nlp = spacy.blank("en")
    config = pipe_config(factory)
    config["model"] = {**config["model"], "tok2vec": CNN}
    pipe: Any = nlp.add_pipe(factory, config=config)
    pipe.initialize(lambda: annotated_examples(nlp))
    randomize(pipe.model, 0)
    return nlp


@pytest.mark.parametrize(
    ("factory", "head"),
    [
        *((name, None) for name in ("tagger", "morphologizer", "trainable_lemmatizer")),
        *((name, None) for name in ("ner", "parser", "distil_ner", "textcat_multilabel")),
        ("senter", SoftmaxHead),
        ("textcat", TextcatHead),
    ],
)
def test_documents_without_annotation_are_passed_over(factory: str, head: type | None) -> None:
    nlp = alone(factory)
    pipe: Any = nlp.get_pipe(factory)
    plan = plan_heads(nlp, spacy.blank("en"), {}, text=True)
    assert plan.heads == {}
    own = plan.gold[factory]
    assert (own and type(own)) == head

    def learn(examples: list[Example], *, plainly: bool = False) -> dict[Any, Any]:
        fix_random_seed(0)
        if own is None or plainly:
            pipe.update(examples)
        else:
            own.update(examples, {}, soft=0.0, gold=1.0, drop=0.0, losses={})
        return gradients(pipe.model)

    annotated = [fresh(example) for example in annotated_examples(nlp, 6)]
    # To spaCy a doc of one token is a sentence, annotated or not.
    short = ["Oslo", "."] if factory == "senter" else ["Oslo"]
    bare = unlabelled(nlp, [["Ann", "visited", "New", "Rome"], [], short, words_of(9)])
    # Annotation comes last: if a doc has no token, ner and parser count in the batch's last one.
    mixed = [*bare[:2], *annotated[:3], *bare[2:], *annotated[3:]]
    expected = learn(annotated)
    assert_same(learn(mixed), expected)
    assert learn(bare) == {}
    if head is not None:  # which is why there is one
        plain = learn(mixed, plainly=True)
        assert any(not np.allclose(plain[key], grad, atol=0.1) for key, grad in expected.items())
        assert_same(learn(annotated, plainly=True), expected)


def test_pipes_that_cannot_tell_documents_without_annotation_are_refused() -> None:
    student = spacy.blank("en")
    student.add_pipe("tagger")
    student.add_pipe("spancat", name="spans")
    teacher = spacy.blank("en")
    assert plan_heads(student, teacher, {}).gold == {"tagger": None, "spans": None}
    with pytest.raises(ConfigError, match=r"^'spans' learns from .* corpus = null .*frozen_comp"):
        plan_heads(student, teacher, {}, text=True)
    assert plan_heads(student, teacher, {}, text=True, frozen=["spans"]).gold == {"tagger": None}


# Kinds and labels


def test_kind_is_the_most_special_one(all_kinds: Language) -> None:
    for name in (*TOKEN_PIPES, "parser", "ner", "distil_ner", "textcat"):
        assert kind_of(all_kinds.get_pipe(name)) is KINDS[name]
    assert kind_of(all_kinds.get_pipe("multi")) is KINDS["textcat_multilabel"]
    assert kind_of(all_kinds.get_pipe("transformer")) is None

    class OwnTagger(Tagger):
        pass

    tagger: Any = all_kinds.get_pipe("tagger")
    assert kind_of(OwnTagger(all_kinds.vocab, tagger.model)) is Tagger


def test_outputs_have_names_that_pipelines_share(all_kinds: Language, teacher: Language) -> None:
    for name in (*TOKEN_PIPES, "parser", "ner", "textcat"):
        names = output_names(all_kinds.get_pipe(name))
        assert names == output_names(teacher.get_pipe(name))  # trained on the same docs
        if name != "trainable_lemmatizer":
            model: Any = all_kinds.get_pipe(name).model
            layer = model.get_ref("lower" if name in ("parser", "ner") else "output_layer")
            assert len(names) == layer.get_dim("nO")


def test_labels_are_taken_from_kinds_that_suit(all_kinds: Language) -> None:
    assert labels_for("tagger", all_kinds, "tagger") == ("$", ".", "CD", "IN", "NNP", "PRP", "VBD")
    assert set(labels_for("distil_ner", all_kinds, "ner")) == {"PER", "LOC"}
    assert labels_for("textcat", all_kinds, "multi") is None
    other = spacy.blank("en")
    spans: Any = other.add_pipe("spancat")
    spans.add_label("X")
    assert labels_for("spancat", other, "spancat") is None


def test_each_head_names_its_source(all_kinds: Language, bert_dir: Path) -> None:
    kinds = {name: name for name in (*TOKEN_PIPES, "parser", "ner", "distil_ner", "textcat")}
    plan = plan_heads(pipeline(bert_dir, kinds), all_kinds, {})
    assert len({head.source for head in plan.heads.values()}) == len(kinds)
    again = plan_heads(pipeline(bert_dir, kinds), all_kinds, {})
    for name, head in plan.heads.items():
        assert head.source == again.heads[name].source
        assert name in head.source


def test_labels_are_matched_in_any_order() -> None:
    assert match_labels("tagger", ["a", "$", "c"], ["c", "a", "$"]).tolist() == [2, 0, 1]
    with pytest.raises(ConfigError) as raised:
        match_labels("tagger", ["a", "b"], ["a", "$", *(f"x{i:02}" for i in range(22))])
    message = str(raised.value)
    assert "Only the teacher: $, x00, " in message
    assert "x18 and 3 more" in message
    assert "Only the student: b\n" in message


def test_import_needs_neither_torch_nor_transformers() -> None:
    out = run_python(
        """
        import spacy_distil.distillation.pipeline.heads, spacy_distil.distillation.pipeline.student
        print(sorted(set(sys.modules) & {"torch", "transformers"}))
        """,
        block=True,
    )
    assert out.strip() == "[]"
