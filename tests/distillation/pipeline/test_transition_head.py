"""`ner` and `parser`, against walks that score one state at a time, and against spaCy's update."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import spacy
import torch
from spacy.pipeline.tok2vec import Tok2VecListener
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import fix_random_seed

from spacy_distil.distillation.pipeline.heads import transitions
from spacy_distil.distillation.pipeline.heads.base import PipeSettings
from spacy_distil.distillation.pipeline.heads.transitions import TransitionHead
from spacy_distil.distillation.pipeline.labels import output_names
from spacy_distil.errors import ConfigError
from tests.distillation.pipeline.util import (
    STOCK_LISTENER,
    TEXTS,
    annotated_examples,
    assert_same,
    build_transitions,
    docs_of,
    entity_moves,
    fresh,
    gradients,
    head_of,
    trained_transitions,
    unlabelled,
    update,
    words_of,
)
from tests.util import adam

KINDS = ("ner", "parser")
make_head = partial(head_of, TransitionHead)


def record(head: TransitionHead, teacher: Any, texts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The records, with vectors in full precision."""
    docs = docs_of(teacher, texts)
    records = head.record(docs)
    layer = head.teacher.model.layers[0]
    return {**records, "tokens": [layer.predict([doc]) for doc in docs]}


# The teacher's side


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_recorded_moves_are_those_of_the_prediction(kind: str, upper: bool) -> None:
    # With random weights the best move is often not valid.
    teacher = build_transitions(kind, upper=upper)
    pipe = teacher.get_pipe(kind)
    docs = docs_of(teacher, [*TEXTS, words_of(300)])
    before = [doc.to_bytes() for doc in docs]
    records = make_head(teacher, teacher).record(docs)
    assert [doc.to_bytes() for doc in docs] == before
    predicted = [doc.copy() for doc in docs]
    pipe.set_annotations(predicted, pipe.predict(docs))
    states = pipe.moves.init_batch(docs)
    for state, moves in zip(states, records["moves"], strict=True):
        assert moves.shape == (len(moves), 1)
        assert moves.dtype == np.int16
        for number in moves[:, 0].tolist():
            pipe.moves.apply_transition(state, pipe.moves.get_class_name(number))
        assert state.is_final()
    pipe.set_annotations(docs, states)
    attributes = ["ENT_IOB", "ENT_TYPE", "HEAD", "DEP", "SENT_START"]
    for doc, expected in zip(docs, predicted, strict=True):
        np.testing.assert_array_equal(doc.to_array(attributes), expected.to_array(attributes))
    annotated = predicted[-1].to_array("ENT_TYPE" if kind == "ner" else "DEP")
    assert len(set(annotated.tolist())) > 2


def test_records_have_the_shapes_of_their_fields() -> None:
    teacher = build_transitions("ner")
    head = make_head(teacher, teacher)
    docs = docs_of(teacher, TEXTS)
    records = head.record(docs)
    for name, field in head.fields.items():
        (found,) = {each.dtype for each in records[name]}
        assert np.can_cast(found, field.dtype, "same_kind")
        assert {each.shape[1] for each in records[name]} == {field.width}
    assert [len(each) for each in records["tokens"]] == [len(words) for words in TEXTS]
    layer = head.teacher.model.layers[0]
    np.testing.assert_allclose(records["tokens"][4], layer.predict([docs[4]]), atol=1e-6, rtol=1e-5)
    nothing = head.record([Doc(teacher.vocab), Doc(teacher.vocab)])
    assert [each.shape for each in nothing["tokens"]] == [(0, 12)] * 2
    assert [each.shape for each in nothing["moves"]] == [(0, 1)] * 2


# Soft targets


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(kind: str, upper: bool) -> None:
    teacher = build_transitions(kind, upper=upper)
    head = make_head(teacher, teacher, temperature=2.0)
    texts = [*TEXTS, words_of(250)]
    records = record(head, teacher, texts)
    assert update(head, unlabelled(teacher, texts), records, soft=1.0) == pytest.approx(0, abs=1e-3)
    residue = gradients(head.student.model)
    assert all(np.abs(grad).max() < 1e-3 for grad in residue.values())
    docs = [example.predicted for example in unlabelled(teacher, texts)]
    halves = [each.astype("float16") for each in head.record(docs)["tokens"]]
    rounded = update(head, unlabelled(teacher, texts), {**records, "tokens": halves}, soft=1.0)
    assert 0 < rounded < 1e-3 * sum(map(len, texts))


@pytest.mark.parametrize("extra_tokens", [False, True])
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_equals_that_of_a_naive_walk(
    kind: str, upper: bool, extra_tokens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference scores state by state, cuts docs by names of moves, and lets torch
    differentiate.

    The student's moves are in another order, and the teacher's model may be of another shape.
    """
    monkeypatch.setattr(transitions, "MAX_MOVES", 9)
    teacher = build_transitions(kind, upper=not upper, extra_state_tokens=extra_tokens)
    student = build_transitions(
        kind, upper=upper, labels=reversed_labels(teacher.get_pipe(kind)), seed=1
    )
    head = make_head(student, teacher, temperature=2.0, weight=0.5)
    records = record(head, teacher, TEXTS)
    loss = update(head, unlabelled(student, TEXTS), records, soft=3.0)
    found = gradients(head.student.model)
    expected_loss = naive_update(head.student, head.teacher, TEXTS, temperature=2.0)
    assert loss == pytest.approx(1.5 * expected_loss, rel=1e-3)
    assert loss > 1
    assert_same(found, gradients(head.student.model), 1.5)


def reversed_labels(pipe: Any) -> dict[Any, dict[str, int]]:
    """The labels of the moves, each kind in the opposite order, which the frequencies decide."""
    reversed_: dict[Any, dict[str, int]] = {}
    for action, labels in pipe.label_data.items():
        names = sorted(labels, key=lambda name: (labels[name], name))
        reversed_[action] = {name: 1 + i for i, name in enumerate(reversed(names))}
    names_before = [pipe.moves.get_class_name(i) for i in range(pipe.moves.n_moves)]
    other = type(pipe.moves)(pipe.vocab.strings, reversed_)
    names = [other.get_class_name(i) for i in range(other.n_moves)]
    assert sorted(names) == sorted(names_before)
    assert names != names_before
    return reversed_


def naive_update(
    student: Any, teacher: Any, texts: Sequence[Sequence[str]], *, temperature: float
) -> float:
    cut = transitions.MAX_MOVES
    names = [student.moves.get_class_name(i) for i in range(student.moves.n_moves)]
    order = [
        [teacher.moves.get_class_name(i) for i in range(teacher.moves.n_moves)].index(name)
        for name in names
    ]
    total = 0.0
    docs, others = (
        [Doc(pipe.vocab, words=list(words)) for words in texts] for pipe in (student, teacher)
    )
    step, backprop_tokens = student.model.begin_update(docs)
    step.attrs["dropout_rate"] = 0.0
    teacher_step = teacher.model.predict(others)
    states, guides = student.moves.init_batch(docs), teacher.moves.init_batch(others)
    for state, guide in zip(states, guides, strict=True):
        # The teacher's own way through the doc, and the states of the student along it.
        starts, n_moves = [], 0
        while not guide.is_final():
            if n_moves % cut == 0:
                starts.append(state.copy())
            scores = teacher_step.predict([guide])[0]
            name = next(
                teacher.moves.get_class_name(i)
                for i in np.argsort(-scores)
                if teacher.moves.is_valid(guide, teacher.moves.get_class_name(i))
            )
            student.moves.apply_transition(state, name)
            teacher.moves.apply_transition(guide, name)
            n_moves += 1
        # -1 where all tokens are on the stack.
        ends = [start.B(0) if start.B(0) >= 0 else 1000 for start in starts[1:]]
        ends += [1000] * (len(starts) - len(ends))
        for start, end in zip(starts, ends, strict=True):
            while not start.is_final() and start.B(0) < end:
                scores, backprop = step.begin_update([start])
                logits = torch.tensor(scores, requires_grad=True)
                targets = torch.tensor(teacher_step.predict([start])[:, order])
                loss = temperature**2 * torch.nn.functional.kl_div(
                    (logits / temperature).log_softmax(1),
                    (targets / temperature).softmax(1),
                    reduction="sum",
                )
                loss.backward()
                total += loss.item()
                assert logits.grad is not None
                backprop(logits.grad.numpy().copy())
                student.transition_states([start], scores)
    backprop_tokens(None)
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_slope_of_the_loss(kind: str) -> None:
    teacher, student = build_transitions(kind), build_transitions(kind, seed=1)
    head = make_head(student, teacher, temperature=1.5)
    records = record(head, teacher, TEXTS)
    update(head, unlabelled(student, TEXTS), records, soft=1.0)
    model = head.student.model
    numbers = [node.id for node in model.walk()]
    slopes = {(numbers[i], name): slope for (i, name), slope in gradients(model).items()}
    tokens, lower = model.layers[0].layers[-1], model.layers[1]
    # Not of the lower layer's W: if a doc has no token, spaCy counts in the batch's last one.
    for node, name in [(tokens, "W"), (tokens, "b"), (lower, "b"), (lower, "pad")]:
        weights, slope = node.get_param(name).copy(), slopes[node.id, name]
        direction = slope / np.linalg.norm(slope)
        losses = []
        for step in (1e-3, -1e-3):
            node.set_param(name, (weights + step * direction).astype("f"))
            losses.append(update(head, unlabelled(student, TEXTS), records, soft=1.0))
        node.set_param(name, weights)
        measured = (losses[0] - losses[1]) / 2e-3
        assert measured == pytest.approx(np.linalg.norm(slope), rel=0.02)


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_student_comes_to_agree_on_text_without_annotation(
    kind: str, upper: bool
) -> None:
    teacher, student = (
        trained_transitions(kind, upper),
        build_transitions(kind, upper=upper, seed=7),
    )
    head = make_head(student, teacher)
    texts = [[t.text for t in eg.reference] for eg in annotated_examples(teacher, 24, start=50)]
    texts.append([word for words in texts for word in words])
    assert agreement(student, teacher, texts) < 0.8
    records = head.record([Doc(teacher.vocab, words=words) for words in texts])
    optimizer = adam(1e-2)
    before = update(head, unlabelled(student, texts), records, soft=1.0)
    for _ in range(50):
        head.student.finish_update(optimizer)
        after = update(head, unlabelled(student, texts), records, drop=0.1, soft=1.0)
    assert after < before / 5
    assert agreement(student, teacher, texts) > 0.95


def agreement(student: Any, teacher: Any, texts: Sequence[Sequence[str]]) -> float:
    attributes = ["ENT_IOB", "ENT_TYPE", "HEAD", "DEP"]
    rows = []
    for nlp in (student, teacher):
        docs = [nlp(Doc(nlp.vocab, words=list(words))) for words in texts]
        rows.append(np.concatenate([doc.to_array(attributes) for doc in docs]))
    return float((rows[0] == rows[1]).all(axis=1).mean())


# The encoder's share


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_hears_once_of_every_token_of_a_long_doc(kind: str) -> None:
    teacher = build_transitions(kind, tok2vec=STOCK_LISTENER)
    student = build_transitions(kind, tok2vec=STOCK_LISTENER, seed=1)
    head = make_head(student, teacher)
    texts = [words_of(1200), [], words_of(30)]
    docs = list(teacher.get_pipe("tok2vec").pipe(Doc(teacher.vocab, words=w) for w in texts))
    records = head.record(docs)
    examples = unlabelled(student, texts)
    reported = listen(student, examples)
    update(head, examples, records, soft=1.0)
    assert len(reported) == 1
    assert [len(each) for each in reported[0]] == [1200, 0, 30]
    assert np.abs(np.concatenate(reported[0])).sum(axis=1).min() > 0


def listen(nlp: Any, examples: Sequence[Example]) -> list[Any]:
    """Feed the listener as an encoder's update does. RETURNS: what it reports, from now on."""
    listener: Any = nlp.get_pipe(nlp.pipe_names[-1]).model.get_ref("tok2vec").layers[0]
    docs = [example.predicted for example in examples]
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=(len(doc), 16)).astype("f") for doc in docs]
    reported: list[Any] = []
    listener.receive(Tok2VecListener.get_batch_id(docs), vectors, reported.append)
    return reported


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_anything_to_learn_is_passed_over(kind: str) -> None:
    teacher = build_transitions(kind, tok2vec=STOCK_LISTENER)
    head = make_head(teacher, teacher)
    empty, bare = unlabelled(teacher, [[], []]), unlabelled(teacher, [["Ann"], [], ["\n"]])
    nothing = head.record([example.predicted for example in empty])
    for examples, records, soft, gold in [(empty, nothing, 1.0, 1.0), (bare, {}, 0.0, 1.0)]:
        reported = listen(teacher, examples)
        assert update(head, examples, records, soft=soft, gold=gold) == 0
        assert reported == []


# Gold


@pytest.mark.parametrize("cut", [0, 4, 100])
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gold_alone_is_the_update_of_spacy(kind: str, upper: bool, cut: int) -> None:
    nlp = build_transitions(kind, upper=upper, update_with_oracle_cut_size=cut)
    pipe = nlp.get_pipe(kind)
    head = make_head(nlp, nlp)
    examples = [*annotated_examples(nlp), *unlabelled(nlp, [[], ["Ann", "slept"]])]
    fix_random_seed(3)
    losses: dict[str, float] = {}
    pipe.update([fresh(example) for example in examples], drop=0.2, losses=losses)
    expected = gradients(pipe.model)
    fix_random_seed(3)
    batch = [fresh(example) for example in examples]
    loss = update(head, batch, {}, soft=0.0, gold=1.0, drop=0.2)
    assert loss == pytest.approx(losses[kind], rel=1e-4)
    assert_same(gradients(pipe.model), expected)


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_both_parts_add_up(kind: str, upper: bool) -> None:
    teacher = build_transitions(kind, upper=upper)
    nlp = build_transitions(kind, upper=upper, seed=1, update_with_oracle_cut_size=0)
    head = make_head(nlp, teacher, temperature=2.0)
    scaled = make_head(nlp, teacher, temperature=2.0, weight=0.5)
    examples = [*annotated_examples(nlp), *unlabelled(nlp, [[], words_of(30)])]
    records = record(head, teacher, [[t.text for t in eg.predicted] for eg in examples])
    parts = []
    for soft, gold in ((1.0, 0.0), (1e-12, 1.0)):
        batch = [fresh(example) for example in examples]
        parts.append(
            (
                update(head, batch, records, soft=soft, gold=gold),
                gradients(nlp.get_pipe(kind).model),
            )
        )
    batch = [fresh(example) for example in examples]
    loss = update(scaled, batch, records, soft=3.0, gold=2.0)
    assert loss == pytest.approx(1.5 * parts[0][0] + parts[1][0], rel=1e-4)
    summed = {key: 1.5 * grad + parts[1][1][key] for key, grad in parts[0][1].items()}
    assert_same(gradients(nlp.get_pipe(kind).model), summed)


# Moves that nobody has trained, and pipes that do not fit


def test_moves_that_the_teacher_has_not_learned_are_no_target() -> None:
    teacher = build_transitions("ner")
    teacher.get_pipe("ner").add_label("NEW")
    assert teacher.get_pipe("ner").model.attrs["unseen_classes"]
    head = make_head(teacher, teacher)
    records = record(head, teacher, TEXTS)
    assert update(head, unlabelled(teacher, TEXTS), records, soft=1.0) == pytest.approx(0, abs=1e-3)
    student = build_transitions("ner", labels=teacher.get_pipe("ner").label_data, seed=1)
    head = make_head(student, teacher)
    update(head, unlabelled(student, TEXTS), records, soft=1.0)
    # The student has these moves, and learns not to make them.
    new = [i for i, name in enumerate(output_names(head.student)) if "NEW" in name]
    assert (head.student.model.layers[1].get_grad("b")[new].sum(axis=1) > 0).all()


def test_a_student_learns_moves_that_have_been_added_to_it() -> None:
    teacher, student = (
        build_transitions("ner", labels=entity_moves("PER", "LOC", "NEW")),
        build_transitions("ner", seed=1),
    )
    student.get_pipe("ner").add_label("NEW")
    head = make_head(student, teacher)
    update(head, unlabelled(student, TEXTS), record(head, teacher, TEXTS), soft=1.0)
    assert head.student.model.attrs["unseen_classes"] == set()
    new = [i for i, name in enumerate(output_names(head.student)) if "NEW" in name]
    assert (head.student.model.layers[1].get_grad("b")[new] != 0).any(axis=1).all()


def test_pipes_that_do_not_fit_are_refused() -> None:
    ner = build_transitions("ner")
    with pytest.raises(ConfigError, match=r"Only the student: .*B-LOC"):
        make_head(ner, build_transitions("ner", labels=entity_moves("PER")))
    with pytest.raises(ConfigError, match="beam_width = 4"):
        make_head(build_transitions("ner", factory="beam_ner", beam_width=4), ner)
    with pytest.raises(ConfigError, match="teacher's 'ner' has beam_width = 4"):
        make_head(ner, build_transitions("ner", factory="beam_ner", beam_width=4))
    with pytest.raises(ConfigError, match="maxout_pieces = 1"):
        make_head(ner, build_transitions("ner", maxout_pieces=1))
    tagger: Any = spacy.blank("en").add_pipe("tagger")
    with pytest.raises(ConfigError, match="teacher's 'tagger' is a Tagger"):
        TransitionHead(ner.get_pipe("ner"), tagger, PipeSettings())


def test_annotation_with_a_label_that_is_not_the_teachers_is_refused() -> None:
    nlp = build_transitions("ner")
    doc = Doc(nlp.vocab, words=["Ann"])
    example = Example.from_dict(doc, {"entities": ["U-ALIEN"]})
    with pytest.raises(ConfigError, match="U-ALIEN"):
        update(make_head(nlp, nlp), [example], {}, soft=0.0, gold=1.0)
