"""Probabilities of entities against all valid readings, one by one, and against samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacy_distil.ner.decoding import decode, doc_cuts, find_spans
from spacy_distil.ner.marginals import Lattice, Marginals, find_safe_cuts
from spacy_distil.ner.n_best import Entity, n_best
from spacy_distil.ner.schemes import PREFIXES, SCHEMES, Scheme, n_tags

# A few times `marginals.TOLERANCE`.
CLOSE = 5e-7


def all_readings(begin: int, end: int, n_labels: int) -> Iterator[tuple[Entity, ...]]:
    """Every way to divide tokens into entities."""
    if begin == end:
        yield ()
        return
    yield from all_readings(begin + 1, end, n_labels)
    for stop in range(begin + 1, end + 1):
        for label in range(n_labels):
            for rest in all_readings(stop, end, n_labels):
                yield ((begin, stop, label), *rest)


def spell(reading: tuple[Entity, ...], case: dict[str, Any]) -> list[int] | None:
    """The tags of a reading, None if it is not valid."""
    tags = [0] * len(case["scores"])
    previous = None
    for start, end, label in reading:
        crosses = case["cuts"][start + 1 : end].any() or case["fixed"][start:end].any()
        if crosses or case["is_space"][start] or case["is_space"][end - 1]:
            return None
        follows = previous == (start, label) and not case["cuts"][start]
        if case["scheme"] == "BILUO":
            moves = [0, *[1] * (end - start - 2), 2] if end - start > 1 else [3]
        elif case["scheme"] == "IOB2":
            moves = [0] + [1] * (end - start - 1)
        elif case["scheme"] == "IOB1":
            moves = [0 if follows else 1] + [1] * (end - start - 1)
        else:
            if follows:
                return None
            moves = [0] * (end - start)
        n = len(PREFIXES[case["scheme"]])
        tags[start:end] = [1 + n * label + move for move in moves]
        previous = (end, label)
    return tags


def by_brute_force(case: dict[str, Any]) -> dict[tuple[Entity, ...], float]:
    """The probability of each valid reading."""
    n_labels = (case["scores"].shape[1] - 1) // len(PREFIXES[case["scheme"]])
    found = {}
    for reading in all_readings(0, len(case["scores"]), n_labels):
        tags = spell(reading, case)
        if tags is not None:
            found[reading] = case["scores"][np.arange(len(tags)), tags].sum()
    total = np.logaddexp.reduce(np.array([*found.values()]))
    return {reading: float(np.exp(score - total)) for reading, score in found.items()}


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    scheme: Scheme = draw(st.sampled_from(SCHEMES))  # type: ignore[arg-type]
    n_labels = draw(st.integers(1, 3))
    n_tokens = draw(st.integers(1, {1: 7, 2: 6, 3: 5}[n_labels]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = rng.normal(0, draw(st.sampled_from([0.5, 3, 9])), (n_tokens, n_tags(n_labels, scheme)))
    scores[:, 0] += draw(st.sampled_from([0, 4, 14]))
    rate = draw(st.sampled_from([0.0, 0.2]))
    cuts = rng.random(n_tokens + 1) < rate
    cuts[[0, -1]] = True
    is_space = rng.random(n_tokens) < rate
    return {
        "scheme": scheme,
        "scores": scores,
        "cuts": cuts,
        "fixed": rng.random(n_tokens) < rate,
        "is_space": is_space & (scheme == "BILUO"),
    }


def marginals_of(case: dict[str, Any], wanted: np.ndarray | None = None) -> Marginals:
    lattice = Lattice.of(
        case["scores"],
        case["scheme"],
        case["cuts"],
        is_space=case["is_space"],
        fixed=case["fixed"],
    )
    return Marginals(lattice, np.ones(len(case["scores"]), bool) if wanted is None else wanted)


@settings(max_examples=200)
@given(cases())
def test_equals_a_sum_over_all_readings(case: dict[str, Any]) -> None:
    readings = by_brute_force(case)
    n_tokens = len(case["scores"])
    n_labels = (case["scores"].shape[1] - 1) // len(PREFIXES[case["scheme"]])
    entities: Counter[Entity] = Counter()
    tags = np.zeros((n_tokens, 1 + 4 * n_labels))
    for reading, probability in readings.items():
        own = np.zeros(n_tokens, dtype=int)
        for start, end, label in reading:
            entities[start, end, label] += probability
            own[start:end] = 1 + 4 * label + 1
            own[start], own[end - 1] = 1 + 4 * label, 1 + 4 * label + 2
            if end - start == 1:
                own[start] = 1 + 4 * label + 3
        tags[np.arange(n_tokens), own] += probability
    marginals = marginals_of(case)
    np.testing.assert_allclose(marginals.tags, tags, rtol=0, atol=CLOSE)
    moves = tags[:, 1:].reshape(n_tokens, n_labels, 4)
    np.testing.assert_allclose(marginals.begins, moves[:, :, [0, 3]].sum(2), rtol=0, atol=CLOSE)
    np.testing.assert_allclose(marginals.ends, moves[:, :, [2, 3]].sum(2), rtol=0, atol=CLOSE)
    spans = [
        (start, end, label)
        for start in range(n_tokens)
        for end in range(start + 1, n_tokens + 1)
        for label in range(n_labels)
    ]
    expected = [entities[span] for span in spans]
    found = marginals.spans(*np.array(spans).T)
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE)
    # Every entity above a threshold, and no other.
    for threshold in (0.01, 0.3, 1.0):
        *columns, probabilities = marginals.find_candidates(threshold)
        candidates = {*zip(*(column.tolist() for column in columns), strict=True)}
        near = {span for span in spans if abs(entities[span] - threshold) <= CLOSE}
        assert candidates ^ {span for span in spans if entities[span] >= threshold} <= near
        assert (probabilities >= threshold).all()


@settings(max_examples=100)
@given(cases(), st.integers(1, 6))
def test_best_readings(case: dict[str, Any], n: int) -> None:
    readings = by_brute_force(case)
    best = sorted(readings.values(), reverse=True)[:n]
    found = n_best(marginals_of(case), n, 0, len(case["scores"]))
    sure = [probability for probability in best if probability > CLOSE]
    np.testing.assert_allclose([each[0] for each in found][: len(sure)], sure, rtol=0, atol=CLOSE)
    assert len({each[1] for each in found}) == len(found)
    for probability, entities in found:
        assert readings[entities] == pytest.approx(probability, abs=CLOSE)


def test_equals_samples() -> None:
    """Tags drawn token by token, of which the valid sequences count."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 1, (4, n_tags(1)))
    case = {
        "scheme": "BILUO",
        "scores": scores,
        "cuts": doc_cuts([4]),
        "fixed": np.zeros(4, bool),
        "is_space": np.zeros(4, bool),
    }
    gumbel = rng.gumbel(size=(100_000, *scores.shape))
    drawn = (scores + gumbel).argmax(axis=2)
    valid = {tuple(spell(reading, case) or ()): reading for reading in all_readings(0, 4, 1)}
    kept = [valid[sample] for sample in map(tuple, drawn.tolist()) if sample in valid]
    counts = Counter(entity for reading in kept for entity in reading)
    spans = np.array([*counts])
    found = marginals_of(case).spans(*spans.T)
    expected = np.array([*counts.values()]) / len(kept)
    assert len(kept) > 4_000
    np.testing.assert_allclose(found, expected, rtol=0, atol=5 * 0.5 / len(kept) ** 0.5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_long_text_of_many_docs(scheme: Scheme) -> None:
    """Docs side by side are as each by itself, and wanted stretches as in the whole."""
    rng = np.random.default_rng(1)
    lengths = [0, 300, 1, 40, 0, 7, 120]
    n = sum(lengths)
    scores = rng.normal(0, 2, (n, n_tags(4, scheme)))
    scores[:, 0] += 12
    scores[rng.random(n) < 0.1, 0] -= 12
    nothing = np.zeros(n, bool)
    case: dict[str, Any] = {
        "scheme": scheme,
        "scores": scores,
        "fixed": nothing,
        "is_space": nothing,
    }
    whole = marginals_of({**case, "cuts": doc_cuts(lengths)})
    assert find_safe_cuts(whole.lattice).mean() > 0.25
    begin = 0
    for length in lengths:
        own = slice(begin, begin + length)
        alone = marginals_of(
            {
                "scheme": scheme,
                "scores": scores[own],
                "cuts": doc_cuts([length]),
                "fixed": nothing[own],
                "is_space": nothing[own],
            }
        )
        np.testing.assert_allclose(whole.tags[own], alone.tags, rtol=0, atol=1e-12)
        assert whole.log_sum(begin, begin + length) == pytest.approx(alone.log_sum(0, length))
        begin += length
    np.testing.assert_allclose(whole.tags.sum(axis=1), 1, rtol=0, atol=1e-12)
    starts, ends, labels, probabilities = whole.find_candidates(0.2)
    wanted = nothing.copy()
    wanted[starts] = True
    part = marginals_of({**case, "cuts": doc_cuts(lengths)}, wanted)
    np.testing.assert_allclose(part.spans(starts, ends, labels), probabilities, rtol=0, atol=1e-12)


def test_scores_of_any_size() -> None:
    """Logits far apart: the only valid reading has the probability 1."""
    scores = np.array([[0, 900, -900, -900, -900], [0, -900, -900, -900, 800]], dtype="f")
    cuts = doc_cuts([2])
    nothing = np.zeros(2, bool)
    case = {"scheme": "BILUO", "scores": scores, "fixed": nothing, "is_space": nothing}
    tags = decode(scores, cuts)
    found = marginals_of({**case, "cuts": cuts}).spans(*find_spans(tags))
    np.testing.assert_allclose(found, 1.0)
    marginals = marginals_of({**case, "cuts": cuts, "fixed": np.ones(2, bool)})
    np.testing.assert_array_equal(marginals.tags[:, 0], 1.0)
    assert len(marginals.find_candidates(1e-9)[0]) == 0
