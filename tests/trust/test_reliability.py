"""Calibration errors and temperatures against plain loops and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from scipy.special import expit, log_softmax, softmax  # type: ignore[import-untyped]

from spacy_distil.ner.batch import Batch
from spacy_distil.ner.decoding import doc_cuts
from spacy_distil.ner.schemes import n_tags
from spacy_distil.trust.evidence import Answers, Choices, Entities, minimize
from spacy_distil.trust.reliability import (
    calibration_error,
    coverage_curve,
    error_by_chance,
    make_bins,
    measure,
)
from tests.ner.test_marginals import by_brute_force, spell


def naive_error(confidence: np.ndarray, correct: np.ndarray, n_bins: int) -> float:
    total = 0.0
    for i in range(n_bins):
        own = (confidence > i / n_bins) & (confidence <= (i + 1) / n_bins)
        if own.any():
            total += own.sum() * abs(confidence[own].mean() - correct[own].mean())
    return total / len(confidence)


@pytest.mark.parametrize("seed", range(5))
def test_calibration_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence = rng.random(1_000) ** 0.3
    correct = rng.random(1_000) < confidence**2
    found = calibration_error(confidence, correct)
    assert found == pytest.approx(naive_error(confidence, correct, 15))
    order = np.argsort(confidence)
    bins = np.array_split(order, 10)
    expected = sum(len(own) * abs(confidence[own].mean() - correct[own].mean()) for own in bins)
    found = calibration_error(confidence, correct, n_bins=10, adaptive=True)
    assert found == pytest.approx(expected / 1_000)


def test_extremes() -> None:
    assert calibration_error([], []) == 0
    assert calibration_error([1.0, 1.0], [True, True]) == 0
    assert calibration_error([1.0, 0.0], [False, False]) == 0.5
    found = measure([0.5], [True], brier=0.0, log_loss=0.0)
    assert (found.n, found.accuracy, found.confidence, found.ece) == (1, 1.0, 0.5, 0.5)
    assert measure([], [], brier=0.0, log_loss=0.0).n == 0


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 3.0])
def test_choices(true_temperature: float) -> None:
    """Truth drawn at a temperature: it is found again, as scipy finds it."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (5_000, 6))
    probs = softmax(logits / true_temperature, axis=1)
    truth = np.array([rng.choice(6, p=row) for row in probs])
    evidence = Choices("tokens", logits.astype("f"), truth)
    (found,) = evidence.fit()

    def loss(t: float) -> float:
        return float(-log_softmax(logits / t, axis=1)[np.arange(5_000), truth].mean())

    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-6}).x
    assert found == pytest.approx(best, rel=2e-3)
    assert found == pytest.approx(true_temperature, rel=0.06)
    scores = evidence.score([found])
    own = softmax(logits / found, axis=1)
    onehot = np.eye(6)[truth]
    assert scores.log_loss == pytest.approx(loss(found), rel=1e-5)
    assert scores.brier == pytest.approx(((own - onehot) ** 2).sum(axis=1).mean(), rel=1e-5)
    assert scores.accuracy == (own.argmax(axis=1) == truth).mean()
    assert scores.ece < 0.02


def test_answers() -> None:
    rng = np.random.default_rng(1)
    log_odds = rng.normal(0, 3, (4_000, 3))
    truth = rng.random((4_000, 3)) < expit(log_odds / np.array([0.5, 2.0, 1.0]))
    truth[:, 2] = True  # only one answer: nothing to fit
    known = rng.random((4_000, 3)) < 0.9
    evidence = Answers(log_odds, truth, known)
    found = evidence.fit()
    assert found == pytest.approx([0.5, 2.0, 1.0], rel=0.08)
    assert found[2] == 1.0
    for column in range(2):
        own = known[:, column]

        def loss(t: float, column: int = column, own: np.ndarray = own) -> float:
            yes = expit(log_odds[own, column] / t)
            return float(-np.log(np.where(truth[own, column], yes, 1 - yes)).mean())

        best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x
        assert found[column] == pytest.approx(best, rel=2e-3)
    scores = evidence.score(found)
    yes = expit(log_odds / np.array(found))[known]
    assert scores.brier == pytest.approx(((yes - truth[known]) ** 2).mean())
    assert scores.accuracy == ((yes >= 0.5) == truth[known]).mean()
    assert evidence.n == known.any(axis=1).sum()


@pytest.mark.parametrize("scheme", ["BILUO", "IOB2", "IOB1", "IO"])
def test_entities(scheme: Any) -> None:
    """The likelihood is the probability of the true reading, by brute force."""
    rng = np.random.default_rng(2)
    nothing = np.zeros(5, bool)
    batches, loss, correct = [], {1.0: 0.0, 2.5: 0.0}, []
    for _ in range(10):
        scores = rng.normal(0, 2, (5, n_tags(2, scheme)))
        case = {
            "scheme": scheme,
            "scores": scores,
            "cuts": doc_cuts([5]),
            "fixed": nothing,
            "is_space": nothing,
        }
        readings = by_brute_force(case)
        chosen = [*readings][rng.choice(len(readings), p=[*readings.values()])]
        best = max(readings, key=lambda reading: readings[reading])
        correct += [entity in chosen for entity in best]
        for t in loss:
            loss[t] -= np.log(by_brute_force({**case, "scores": scores / t})[chosen])
        batch = Batch(scheme, [5], scores, doc_cuts([5]), nothing, nothing)
        batches.append((batch, np.array(spell(chosen, case))))
    evidence = Entities(batches)
    for t, expected in loss.items():
        scores_at = evidence.score([t])
        assert scores_at.log_loss == pytest.approx(expected / 50, rel=1e-5)
        assert (scores_at.n, scores_at.accuracy) == (len(correct), np.mean(correct))
    assert evidence.n == 50
    (found,) = evidence.fit()
    at_best = evidence.score([found]).log_loss
    assert all(
        at_best <= evidence.score([found * f]).log_loss + 1e-9 for f in (0.9, 0.98, 1.02, 1.1)
    )


def test_minimize_ends() -> None:
    assert minimize(lambda t: t) == pytest.approx(0.05, rel=2e-3)
    assert minimize(lambda t: -t) == pytest.approx(20, rel=2e-3)


def test_bins_and_coverage_against_a_naive_loop() -> None:
    rng = np.random.default_rng(3)
    probs = rng.uniform(0, 1, 400).round(2)
    right = rng.uniform(0, 1, 400) < probs
    found = make_bins(probs, right)
    expected = []
    for i in range(15):
        inside = [
            j for j in range(400) if i / 15 < probs[j] <= (i + 1) / 15 or (i == probs[j] == 0)
        ]
        if inside:
            expected.append((len(inside), np.mean(probs[inside]), np.mean(right[inside])))
    assert [each.n for each in found] == [n for n, _, _ in expected]
    np.testing.assert_allclose([each.confidence for each in found], [c for _, c, _ in expected])
    np.testing.assert_allclose([each.accuracy for each in found], [a for _, _, a in expected])
    gaps = sum(each.n * abs(each.confidence - each.accuracy) for each in found)
    assert calibration_error(probs, right) == pytest.approx(gaps / 400)

    order = sorted(range(400), key=lambda j: -probs[j])
    curve = coverage_curve(probs, right)
    assert len(curve) == 20
    assert curve[-1] == (1.0, pytest.approx(right.mean()))
    for share, accuracy in curve:
        assert accuracy == pytest.approx(np.mean([right[j] for j in order[: round(400 * share)]]))
    assert coverage_curve([0.9, 0.2], [True, False]) == [(0.5, 1.0), (1.0, 0.5)]
    assert make_bins([], []) == coverage_curve([], []) == []


def test_error_by_chance_against_simulation() -> None:
    rng = np.random.default_rng(5)
    probs = np.concatenate([rng.uniform(0.3, 1, 300), rng.uniform(0.95, 1, 700)])
    simulated = [calibration_error(probs, rng.uniform(size=1000) < probs) for _ in range(1000)]
    assert error_by_chance(probs) == pytest.approx(np.mean(simulated), rel=0.05)
    assert error_by_chance([]) == error_by_chance([1.0, 0.0]) == 0.0
