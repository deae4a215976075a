"""Warnings about a measurement, on counts made by hand."""

from __future__ import annotations

import numpy as np

from spacy_distil.report.scores import TaskScores, f_score
from spacy_distil.report.speed import Spread
from spacy_distil.report.verdicts import find_verdicts

SLOW, FAST = Spread(100, 90, 110), Spread(200, 190, 210)


def make_scores(hits: list[int], key: str = "ents_f") -> list[TaskScores]:
    """One seed, on documents with ten entities each."""
    counts = np.array([(n, 10 - n, 10 - n) for n in hits])
    name = {"ents_f": "ents", "tag_acc": "tag"}[key]
    return [TaskScores({key: float(f_score(counts.sum(axis=0)))}, {name: counts})]


def join(*scores: list[TaskScores]) -> list[TaskScores]:
    seeds = [each for (each,) in scores]
    return [
        TaskScores(
            {key: value for seed in seeds for key, value in seed.values.items()},
            {key: value for seed in seeds for key, value in seed.counts.items()},
        )
    ]


def test_a_clear_difference_counts_only_against_a_pipeline_that_is_not_faster() -> None:
    scores = {"ours": make_scores([5, 6] * 20), "cnn": make_scores([8, 9] * 20)}
    worse = ["cnn is better than ours in NER F, and not slower."]
    assert find_verdicts(scores, {"ours": FAST, "cnn": FAST}, n_docs=40) == worse
    assert find_verdicts(scores, {"ours": SLOW, "cnn": FAST}, n_docs=40) == worse
    # Within the range of the rounds.
    nearly = {"ours": Spread(112, 109, 115), "cnn": SLOW}
    assert find_verdicts(scores, nearly, n_docs=40) == worse
    assert find_verdicts(scores, {"ours": FAST, "cnn": SLOW}, n_docs=40) == []


def test_each_has_its_strength() -> None:
    low, high = [5, 6] * 20, [8, 9] * 20
    scores = {
        "ours": join(make_scores(low), make_scores(high, "tag_acc")),
        "cnn": join(make_scores(high), make_scores(low, "tag_acc")),
    }
    assert find_verdicts(scores, {"ours": FAST, "cnn": FAST}, n_docs=40) == []


def test_too_few_documents_to_tell() -> None:
    """Each is better on half of the documents."""
    scores = {
        "ours": make_scores([2, 9] * 6),
        "cnn": make_scores([8, 2] * 6),
        "trf": make_scores([10, 10] * 6),
    }
    rates = {"ours": FAST, "cnn": FAST, "trf": SLOW}
    assert find_verdicts(scores, rates, n_docs=12) == [
        "12 documents are too few to tell apart in NER F: ours and cnn."
    ]


def test_a_handful_of_documents_tells_nothing() -> None:
    """Of one document, each resample is the same: an interval without width."""
    scores = {"ours": make_scores([2]), "cnn": make_scores([8])}
    assert find_verdicts(scores, {"ours": FAST, "cnn": FAST}, n_docs=1) == [
        "1 document is too few to tell apart in NER F: ours and cnn."
    ]


def test_a_score_of_zero_is_told() -> None:
    """Unless the test documents have nothing to find, so that each prediction is wrong."""
    nothing = make_scores([0] * 40)
    unknown = [TaskScores({"ents_f": 0.0}, {})]  # by a scorer of its own
    scores = {"teacher": nothing, "cnn": make_scores([8, 9] * 20), "other": unknown}
    rates = dict.fromkeys(scores, FAST)
    verdict = "NER F is 0 for teacher, other: nothing is right in 40 test documents."
    assert find_verdicts(scores, rates, n_docs=40)[0] == verdict
    scores = {"one seed": [*nothing, *make_scores([1] * 40)]}
    assert find_verdicts(scores, rates, n_docs=40) == []
    alarms = np.array([(0, 3, 0)] * 40)
    scores = {"alarms": [TaskScores({"ents_f": 0.0}, {"ents": alarms})]}
    assert find_verdicts(scores, rates, n_docs=40) == []


def test_nothing_to_tell() -> None:
    same = make_scores([2, 9] * 6)
    other_task = make_scores([2, 3] * 6, "tag_acc")
    unknown = [TaskScores({"ents_f": 0.9}, {})]  # by a scorer of its own
    scores = {"a": same, "b": same, "c": other_task, "d": unknown}
    assert find_verdicts(scores, dict.fromkeys(scores, FAST), n_docs=12) == []
    assert find_verdicts({}, {"a": FAST}, n_docs=0) == []
