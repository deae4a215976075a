"""The decoder against a search through all valid sequences."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacy_distil.ner.decoding import (
    MISSING,
    OUTSIDE,
    decode,
    doc_cuts,
    find_spans,
    trim_edges,
)
from spacy_distil.ner.schemes import n_tags, tag_names


def valid_sequences(n_tokens: int, n_labels: int) -> list[tuple[str, ...]]:
    """Every valid sequence of tags of one stretch, built up entity by entity."""
    if n_tokens == 0:
        return [()]
    found = [("O", *rest) for rest in valid_sequences(n_tokens - 1, n_labels)]
    for length in range(1, n_tokens + 1):
        for label in range(n_labels):
            inner = [f"I-{label}"] * (length - 2)
            entity = [f"B-{label}", *inner, f"L-{label}"] if length > 1 else [f"U-{label}"]
            found += [(*entity, *rest) for rest in valid_sequences(n_tokens - length, n_labels)]
    return found


def brute_force(
    scores: np.ndarray, cuts: np.ndarray, no_edge: np.ndarray, fixed: np.ndarray
) -> np.ndarray:
    """The best of all valid sequences that respect the constraints."""
    n_tokens, n_columns = scores.shape
    names = tag_names([str(label) for label in range((n_columns - 1) // 4)])
    number = {name: i for i, name in enumerate(names)}
    best, best_score = None, -np.inf
    for sequence in valid_sequences(n_tokens, (n_columns - 1) // 4):
        prefixes = [tag[0] for tag in sequence]
        crossing = any(cuts[t] and prefixes[t] in "IL" for t in range(n_tokens))
        edge = any(no_edge[t] and prefixes[t] in "BLU" for t in range(n_tokens))
        taken = any(fixed[t] and prefixes[t] != "O" for t in range(n_tokens))
        if crossing or edge or taken:
            continue
        tags = [number[tag] for tag in sequence]
        score = scores[np.arange(n_tokens), tags][~fixed].sum()
        if score > best_score:
            best, best_score = tags, score
    assert best is not None
    return np.array(best, dtype=np.int64)


def naive_viterbi(scores: np.ndarray, allowed: np.ndarray) -> float:
    """The best score of one stretch, over a full matrix of transitions."""
    n_columns = scores.shape[1]

    def after(tag: int) -> int:
        return (tag - 1) // 4 + 1 if tag and (tag - 1) % 4 in (0, 1) else 0

    def before(tag: int) -> int:
        return (tag - 1) // 4 + 1 if tag and (tag - 1) % 4 in (1, 2) else 0

    state = np.array([-np.inf if before(tag) else 0.0 for tag in range(n_columns)])
    state = state + np.where(allowed[0], scores[0], -np.inf)
    follows = np.array(
        [
            [0.0 if after(x) == before(y) else -np.inf for y in range(n_columns)]
            for x in range(n_columns)
        ]
    )
    for row, permitted in zip(scores[1:], allowed[1:], strict=True):
        state = (state[:, None] + follows).max(axis=0) + np.where(permitted, row, -np.inf)
    return float(max(state[tag] for tag in range(n_columns) if not after(tag)))


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    n_labels = draw(st.integers(1, 2))
    lengths = draw(st.lists(st.integers(0, 5 if n_labels == 2 else 7), min_size=1, max_size=2))
    n_tokens = sum(lengths)
    seed = draw(st.integers(0, 2**32 - 1))
    outside = draw(st.sampled_from([-2.0, 0.0, 1.0, 3.0]))
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 2, (n_tokens, n_tags(n_labels)))
    scores[:, 0] += outside
    rate = draw(st.sampled_from([0.0, 0.3]))
    return {
        "lengths": lengths,
        "scores": scores,
        "inner": rng.random(n_tokens + 1) < rate,
        "no_edge": rng.random(n_tokens) < rate,
        "fixed": rng.random(n_tokens) < rate,
    }


@settings(max_examples=150)
@given(cases())
def test_equals_a_search_through_all_sequences(case: dict[str, Any]) -> None:
    lengths, scores = case["lengths"], case["scores"]
    cuts = doc_cuts(lengths) | case["inner"]
    cuts[[0, -1]] = True
    tags = decode(scores, cuts, no_edge=case["no_edge"], fixed=case["fixed"])
    start = 0
    for length in lengths:  # docs do not touch each other
        own = slice(start, start + length)
        expected = brute_force(
            scores[own], cuts[start : start + length + 1], case["no_edge"][own], case["fixed"][own]
        )
        assert tags[own].tolist() == expected.tolist()
        start += length


@pytest.mark.parametrize("outside", [-3.0, 0.0, 2.0, 6.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_viterbi_over_all_transitions(outside: float, dtype: type) -> None:
    """On longer docs, from models that see entities everywhere to ones that see few."""
    rng = np.random.default_rng(0)
    lengths = [1, 40, 0, 7, 133, 2]
    n_labels = 3
    scores: Any = rng.normal(0, 2, (sum(lengths), n_tags(n_labels))).astype(dtype)
    scores[:, 0] += outside
    no_edge = rng.random(len(scores)) < 0.1
    allowed = np.ones(scores.shape, dtype=bool)
    edges = [c for c, name in enumerate(tag_names(list("abc"))) if name[0] in "BLU"]
    allowed[np.flatnonzero(no_edge)[:, None], edges] = False
    before = scores.copy()
    tags = decode(scores, doc_cuts(lengths), no_edge=no_edge)
    assert np.array_equal(scores, before)
    ends = np.cumsum(lengths)
    for start, end in zip(ends - lengths, ends, strict=True):
        if start == end:
            continue
        own = np.arange(start, end)
        assert allowed[own, tags[own]].all()
        found = scores[own, tags[own]].astype(np.float64).sum()
        assert found == pytest.approx(naive_viterbi(scores[own], allowed[own]), abs=1e-4)
        spans = list(zip(*find_spans(tags[own]), strict=True))
        rebuilt = np.zeros(len(own), dtype=np.int64)
        for first, last, label in spans:
            rebuilt[first:last] = 2 + 4 * label
            rebuilt[first], rebuilt[last - 1] = 1 + 4 * label, 3 + 4 * label
            if last - first == 1:
                rebuilt[first] = 4 + 4 * label
        assert np.array_equal(rebuilt, tags[own])


def test_valid_best_tags_are_the_answer() -> None:
    names = tag_names(["X", "Y"])
    words = ["O", "B-X", "I-X", "L-X", "U-Y", "O", "B-Y", "L-Y"]
    scores = np.zeros((len(words), len(names)))
    scores[np.arange(len(words)), [names.index(word) for word in words]] = 1
    tags = decode(scores, doc_cuts([8]))
    assert [names[tag] for tag in tags] == words
    starts, ends, labels = find_spans(tags)
    assert [starts.tolist(), ends.tolist(), labels.tolist()] == [[1, 4, 6], [4, 5, 8], [0, 1, 1]]


def test_a_fault_far_away_is_found() -> None:
    """The best correction of an entity without an end may lie many tokens on."""
    names = tag_names(["X"])
    scores = np.zeros((30, 5))
    scores[:, 1:] = -1.0
    scores[:, names.index("I-X")] = -0.01
    scores[0, names.index("B-X")] = 9
    scores[29, names.index("L-X")] = 9
    tags = decode(scores, doc_cuts([30]))
    assert [names[tag] for tag in tags] == ["B-X", *["I-X"] * 28, "L-X"]


def test_no_labels_and_no_tokens() -> None:
    assert decode(np.zeros((3, 1)), doc_cuts([3])).tolist() == [0, 0, 0]
    assert decode(np.zeros((0, 5)), doc_cuts([])).tolist() == []
    assert decode(np.zeros((0, 5)), doc_cuts([0, 0])).tolist() == []


def test_equal_scores_are_no_entities() -> None:
    assert not decode(np.zeros((5, 9)), doc_cuts([5])).any()


def test_names() -> None:
    assert tag_names(["A-1", "B"]) == [
        "O", "B-A-1", "I-A-1", "L-A-1", "U-A-1", "B-B", "I-B", "L-B", "U-B",
    ]  # fmt: skip
    assert [n_tags(n) for n in range(3)] == [1, 5, 9]


@pytest.mark.parametrize("cuts", [np.zeros(4, dtype=bool), np.ones(3, dtype=bool)])
def test_wrong_cuts_are_refused(cuts: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"Expected cuts of shape \(4,\), True at both ends"):
        decode(np.zeros((3, 5)), cuts)


def test_wrong_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="1 \\+ 4 \\* n_labels columns, got 4"):
        decode(np.zeros((3, 4)), doc_cuts([3]))


def test_all_sequences_are_counted() -> None:
    """The reference of these tests: for one label, 1, 2, 5, 13 sequences."""
    assert [len(valid_sequences(n, 1)) for n in range(4)] == [1, 2, 5, 13]
    every = set(itertools.product(tag_names(["0"]), repeat=2))
    assert set(valid_sequences(2, 1)) < every


# Edges


def test_trimmed_entities_are_those_of_a_naive_search() -> None:
    rng = np.random.default_rng(0)
    names = tag_names(("A", "B"))
    for _ in range(300):
        n_tokens = int(rng.integers(1, 12))
        no_edge = rng.random(n_tokens) < 0.4
        tags, expected, i, n_changed = ["O"] * n_tokens, ["O"] * n_tokens, 0, 0
        while i < n_tokens:
            end = min(n_tokens, i + int(rng.integers(1, 5)))
            if rng.random() < 0.6:
                label = str(rng.choice(["A", "B"]))
                write(tags, i, end, label)
                first, last = i, end
                while first < last and no_edge[first]:
                    first += 1
                while first < last and no_edge[last - 1]:
                    last -= 1
                write(expected, first, last, label)
                n_changed += (first, last) != (i, end)
            i = end
        numbers = np.array([names.index(tag) for tag in tags])
        before = numbers.copy()
        found, n_found = trim_edges(numbers, no_edge)
        assert [names[tag] for tag in found] == expected
        assert n_found == n_changed
        np.testing.assert_array_equal(numbers, before)


def write(tags: list[str], start: int, end: int, label: str) -> None:
    """Write the tags of an entity."""
    if end - start == 1:
        tags[start] = f"U-{label}"
    elif end > start:
        tags[start:end] = [f"I-{label}"] * (end - start)
        tags[start], tags[end - 1] = f"B-{label}", f"L-{label}"


def test_missing_tags_stay_missing() -> None:
    tags = np.array([MISSING, 4, MISSING, OUTSIDE, 4])
    found, n_changed = trim_edges(tags, np.array([True, True, True, False, False]))
    assert (found.tolist(), n_changed) == ([MISSING, OUTSIDE, MISSING, OUTSIDE, 4], 1)
