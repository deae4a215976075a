"""Heads that learn decisions, against the pipes' own update on annotation made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc, Span
from spacy.training import Example
from thinc.api import fix_random_seed

from spacy_distil.distillation.pipeline.heads import PipeSettings, find_pairs, plan_heads
from spacy_distil.distillation.pipeline.heads.annotation import annotation_of
from spacy_distil.distillation.pipeline.heads.decisions import (
    CatsHead,
    DecisionHead,
    decision_head,
)
from spacy_distil.errors import ConfigError
from tests.distillation.pipeline.deciders import deciders
from tests.distillation.pipeline.util import (
    CNN,
    TEXTS,
    annotated_examples,
    assert_same,
    docs_of,
    fresh,
    gradients,
    head_of,
    learn,
    randomize,
    unlabelled,
)

ROWS = [[t.text for t in eg.reference] for eg in annotated_examples(spacy.blank("en"), 8)]
ROWS += [
    *map(list, TEXTS),
    ["\x01", "e\u0301", "😀"],
    ["安", "去", "了", "罗马", "。"],
    ["x"] * 200,
]
TEACHERS = {
    "ner": "tests_zero_shot",
    "distil_ner": "tests_zero_shot",
    "spancat": "tests_spans",
    "tagger": "tests_tokens",
    "morphologizer": "tests_tokens",
    "senter": "tests_tokens",
    "trainable_lemmatizer": "tests_tokens",
    "parser": "tests_parse",
    "textcat": "tests_cats",
    "textcat_multilabel": "tests_cats",
}


def build_student(factory: str, **initialize: Any) -> Any:
    """A pipe with random weights that knows the teacher's labels, and its pipeline."""
    fix_random_seed(3)
    nlp = spacy.blank("en")
    pipe: Any = nlp.add_pipe(factory, config=_settings(factory))
    docs = [hand_made(factory, words, nlp.vocab) for words in ROWS]
    examples = list(map(Example, docs_of(nlp, ROWS), docs))
    pipe.initialize(lambda: examples, **initialize)
    randomize(pipe.model, 3)
    return nlp, pipe


def _settings(factory: str) -> dict[str, Any]:
    nlp: Any = spacy.blank("en")
    model = spacy.util.copy_config(nlp.get_factory_meta(factory).default_config)["model"]
    block = model if "tok2vec" in model else model.get("linear_model", model)
    if factory.startswith("textcat"):
        exclusive = factory == "textcat"
        model = {"@architectures": "spacy.TextCatReduce.v1", "exclusive_classes": exclusive}
        model |= {f"use_reduce_{kind}": kind == "mean" for kind in ("first", "last", "max", "mean")}
        block = model
    block["tok2vec"] = CNN
    extra = {"parser": {"min_action_freq": 1}, "trainable_lemmatizer": {"min_tree_freq": 1}}
    return {"model": model, **extra.get(factory, {})}


def hand_made(factory: str, words: Sequence[str], vocab: Any) -> Doc:
    """The teacher's decisions, in a doc that spaCy's own constructor makes."""
    types = {**dict.fromkeys(("Ann", "Bob", "Zoë"), "PER")}
    types |= dict.fromkeys(("Rome", "Oslo", "Zürich"), "LOC")
    given: dict[str, Any] = {}

    def choose(name: str, other: str) -> list[str]:
        return ["" if w.isspace() else name if w[0].isupper() else other for w in words]

    if factory in ("ner", "distil_ner"):
        given["ents"] = [f"B-{types[word]}" if word in types else "O" for word in words]
    elif factory == "tagger":
        given["tags"] = choose("NAME", "WORD")
    elif factory == "morphologizer":
        given["pos"] = choose("PROPN", "X")
    elif factory == "trainable_lemmatizer":
        given["lemmas"] = ["" if word.isspace() else word.removesuffix("ed") for word in words]
    elif factory == "senter":
        starts = [i == 0 or words[i - 1] == "." for i in range(len(words))]
        given["sent_starts"] = [
            None if word.isspace() and i else start
            for i, (word, start) in enumerate(zip(words, starts, strict=True))
        ]
    elif factory == "parser":
        start = 0
        heads = []
        for i in range(len(words)):
            start = i if i and words[i - 1] == "." else start
            heads.append(start)
        given["heads"] = heads
        given["deps"] = ["ROOT" if head == i else "dep" for i, head in enumerate(heads)]
    doc = Doc(vocab, words=list(words), **given)
    for token in doc if factory == "morphologizer" else ():
        if not token.is_space:
            token.set_morph("Number=Sing" if token.text[0].isupper() else "")
    if factory == "spancat":
        named = [Span(doc, i, i + 1, types[w]) for i, w in enumerate(words) if w in types]
        long = [Span(doc, s.start, s.end + 1, "LONG") for s in named if s.end < len(doc)]
        doc.spans["sc"] = named + long
    elif factory.startswith("textcat"):
        travel = any(types.get(word) == "PER" for word in words)
        doc.cats = {"travel": float(travel), "food": float(not travel)}
    return doc


def teach(teacher: Language, rows: Sequence[Sequence[str]]) -> list[Doc]:
    return [teacher(doc) for doc in docs_of(teacher, rows)]


@pytest.mark.parametrize("factory", [f for f in TEACHERS if not f.startswith("textcat")])
def test_it_is_the_plain_update_on_what_the_component_decides(factory: str) -> None:
    nlp, pipe = build_student(factory)
    teacher = deciders(TEACHERS[factory])
    head = head_of(DecisionHead, nlp, teacher, target="silver")
    records = head.record(teach(teacher, ROWS))
    for name, field in head.fields.items():
        assert {each.shape[1] for each in records[name]} == {field.width}
    references = [hand_made(factory, words, nlp.vocab) for words in ROWS]
    if factory == "senter":  # which takes unknown sentences for none
        known = [i for i, doc in enumerate(references) if doc.has_annotation("SENT_START")]
        pairs = [(docs_of(nlp, [ROWS[i]])[0], references[i]) for i in known]
    else:
        pairs = list(zip(docs_of(nlp, ROWS), references, strict=True))
    expected: dict[str, float] = {}
    fix_random_seed(1)
    pipe.update([Example(*pair) for pair in pairs], losses=expected)
    plain = gradients(pipe.model)
    fix_random_seed(1)
    loss, learned = learn(head, unlabelled(nlp, ROWS), records, soft=1.0)
    assert {pipe.name: loss} == pytest.approx(expected)
    assert loss > 1
    assert_same(learned, plain)


def test_a_span_group_teaches_entities_by_score_and_threshold() -> None:
    nlp, _ = build_student("ner")
    teacher = deciders("tests_spans")
    records = []
    for threshold in (None, 0.5):
        settings = {"spans_key": "sc", "threshold": threshold, "target": "silver"}
        head = head_of(DecisionHead, nlp, teacher, **settings)
        records.append(head.record(teach(teacher, ROWS)))
        expected = head_of(DecisionHead, nlp, deciders("tests_zero_shot"), target="silver").record(
            teach(deciders("tests_zero_shot"), ROWS)
        )
    # The span of the lower score overlaps the one of the higher score, which counts.
    for found in records:
        for one, other in zip(found["tags"], expected["tags"], strict=True):
            np.testing.assert_array_equal(one, other)
    unscored = teach(teacher, ROWS)
    for doc in unscored:
        doc.spans["sc"].attrs.clear()
    with pytest.raises(ConfigError, match=r"threshold = 0\.5, but the teacher's span group 'sc'"):
        head.record(unscored)
    kept = head_of(DecisionHead, nlp, teacher, spans_key="sc", target="silver").record(unscored)
    # Without scores the longest counts, whose label the student lacks.
    lengths = [len(tags) for tags in kept["tags"]]
    lacking = sum(int((tags == -1).sum()) for tags in kept["tags"])
    long = sum(2 for doc in unscored for span in doc.spans["sc"] if span.label_ == "LONG")
    assert lengths == list(map(len, ROWS))
    assert 0 < lacking <= long


def test_scores_of_categories_are_soft_targets() -> None:
    """The loss is the divergence that numpy computes from the student's own predictions."""
    for factory in ("textcat", "textcat_multilabel"):
        nlp, pipe = build_student(factory)
        teacher = deciders("tests_cats")
        head = head_of(CatsHead, nlp, teacher, target="soft")
        annotated = teach(teacher, ROWS)
        annotated[0].cats = {}
        annotated[1].cats = {"other": 1.0}
        records = head.record(annotated)
        taught = [i for i, words in enumerate(ROWS) if words and i > 1]
        docs = docs_of(nlp, ROWS)
        probs = np.asarray(pipe.predict(docs), dtype="d")[taught]
        wanted = np.array([[annotated[i].cats[label] for label in pipe.labels] for i in taught])
        divergence = wanted * np.log(wanted / probs)
        if factory == "textcat_multilabel":
            divergence += (1 - wanted) * np.log((1 - wanted) / (1 - probs))
        loss, grads = learn(head, unlabelled(nlp, ROWS), records, soft=1.0)
        assert loss == pytest.approx(divergence.sum(), rel=1e-4)
        alone = {"scores": [records["scores"][i] for i in taught]}
        _, same = learn(head, unlabelled(nlp, [ROWS[i] for i in taught]), alone, soft=1.0)
        assert_same(grads, same)
        nothing = {"scores": records["scores"][:2]}
        assert learn(head, unlabelled(nlp, ROWS[:2]), nothing, soft=1.0) == (0.0, {})


def test_decided_categories_are_zero_and_one() -> None:
    nlp, _ = build_student("textcat")
    wild = deciders("tests_cats", tests_cats={"scale": 30.0})
    docs = teach(wild, ROWS[:4])
    head = head_of(CatsHead, nlp, wild, target="silver")
    found = np.exp(np.concatenate(head.record(docs)["scores"]))
    expected = [
        [float(doc.cats[x] == max(doc.cats.values())) for x in head._labels] for doc in docs
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    multi, _ = build_student("textcat_multilabel")
    cats = deciders("tests_cats")
    for threshold, expected_sum in ((0.05, 2), (0.85, 0.5), (0.95, 0)):
        head = head_of(CatsHead, multi, cats, target="silver", threshold=threshold)
        odds = np.concatenate(head.record(teach(cats, [["Ann"], ["we"]]))["scores"])
        assert (odds > 0).sum(axis=1).mean() == expected_sum


@pytest.mark.parametrize("score", [1.5, -0.1, float("nan")])
def test_scores_that_are_no_probabilities_are_refused(score: float) -> None:
    for factory in ("textcat", "textcat_multilabel"):
        nlp, _ = build_student(factory)
        teacher = deciders("tests_cats")
        head = head_of(CatsHead, nlp, teacher, target="soft")
        (doc,) = teach(teacher, [["Ann", "ran"]])
        doc.cats["travel"] = score
        with pytest.raises(ConfigError, match=r"doc\.cats\['travel'\] = .* 'Ann ran ?'.*silver"):
            head.record([doc])


def test_annotation_comes_before_decisions_where_gold_is_on() -> None:
    nlp, pipe = build_student("tagger")
    head = head_of(DecisionHead, nlp, deciders("tests_tokens"), target="silver")
    records = head.record(teach(deciders("tests_tokens"), ROWS[:4]))
    gold = [Doc(nlp.vocab, words=words, tags=["WORD"] * len(words)) for words in ROWS[:2]]
    silver = [hand_made("tagger", words, nlp.vocab) for words in ROWS[2:4]]
    batch = [Example(Doc(nlp.vocab, words=[t.text for t in doc]), doc) for doc in gold]
    _, learned = learn(head, [*batch, *unlabelled(nlp, ROWS[2:4])], records, soft=1.0, gold=1.0)
    pipe.update([fresh(Example(doc, doc)) for doc in gold + silver])
    assert_same(learned, gradients(pipe.model))


# Pairs


def student_of(**pipes: str) -> Language:
    nlp = spacy.blank("en")
    for name, factory in pipes.items():
        nlp.add_pipe(factory, name=name)
    return nlp


def test_a_component_teaches_what_it_declares() -> None:
    student = student_of(own="ner", cats="textcat", tags="tagger", spans="spancat")
    teacher = deciders("tests_zero_shot", "tests_spans", "tests_cats", "tests_tokens")
    pairing = find_pairs(student, teacher, {})
    assert pairing.sources == {
        "own": "tests_zero_shot",
        "cats": "tests_cats",
        "spans": "tests_spans",
    }
    assert pairing.decisions == ["own", "cats", "spans"]
    assert pairing.unused == ["tests_tokens"]
    pipes = {"tags": PipeSettings(teacher="tests_tokens")}
    assert find_pairs(student, teacher, pipes).sources["tags"] == "tests_tokens"


def test_known_kinds_and_doubts_come_first() -> None:
    student = student_of(own="ner")
    known = deciders("tests_zero_shot")
    known.add_pipe("ner", name="entities")
    assert find_pairs(student, known, {}).sources == {"own": "entities"}
    two = deciders("tests_zero_shot", "tests_service")
    pairing = find_pairs(student, two, {})
    assert pairing.sources == {}
    assert "'tests_zero_shot', 'tests_service' of the teacher" in pairing.alone["own"]
    pairing = find_pairs(student_of(a="ner", b="distil_ner"), deciders("tests_zero_shot"), {})
    assert pairing.sources == {}
    assert pairing.alone.keys() == {"a", "b"}
    gold = find_pairs(student, deciders("tests_zero_shot"), {"own": PipeSettings(target="gold")})
    assert gold.sources == {}


@pytest.mark.parametrize(
    ("factory", "settings", "message"),
    [
        ("ner", {"threshold": 0.5}, r"pipes\.pipe\.threshold = 0\.5: only spans"),
        ("textcat", {"threshold": 0.5}, r"pipes\.pipe\.threshold = 0\.5: only spans"),
        ("tagger", {"spans_key": "sc"}, r"pipes\.pipe\.spans_key = 'sc'"),
        ("ner", {"target": "soft"}, "target can only be 'silver' or 'gold'"),
        ("ner", {"weight": 0.5}, r"pipes\.pipe\.weight = 0\.5"),
    ],
)
def test_settings_without_an_effect_are_refused(
    factory: str, settings: dict[str, Any], message: str
) -> None:
    student = student_of(pipe=factory)
    teacher = deciders("tests_zero_shot")
    pipes = {"pipe": PipeSettings(teacher="tests_zero_shot", **settings)}
    with pytest.raises(ConfigError, match=message):
        plan_heads(student, teacher, pipes)


def test_settings_of_decisions_are_refused_for_models() -> None:
    nlp, _ = build_student("ner")
    with pytest.raises(ConfigError, match=r"pipes\.ner\.spans_key = 'sc': the model of"):
        plan_heads(nlp, nlp, {"ner": PipeSettings(spans_key="sc")})


def test_the_source_of_records_names_labels_and_settings() -> None:
    sources = set()
    for labels in (["PER", "LOC"], ["PER"]):
        nlp = spacy.blank("en")
        pipe: Any = nlp.add_pipe("spancat", config=_settings("spancat"))
        for label in labels:
            pipe.add_label(label)
        for threshold in (None, 0.5):
            settings = PipeSettings(target="silver", teacher="t", threshold=threshold)
            sources.add(decision_head(pipe, None, settings).source)
    assert len(sources) == 4
    pipe.cfg["spans_key"] = "other"  # the teacher's group, too, without a setting
    sources.add(decision_head(pipe, None, settings).source)
    assert len(sources) == 5


def test_every_kind_of_pipe_has_a_kind_of_annotation() -> None:
    kinds = {factory: annotation_of(build_student(factory)[1]) for factory in TEACHERS}
    assert None not in kinds.values()
    assert len(set(kinds.values())) == len(kinds) - 2  # both entity recognizers, both textcats
