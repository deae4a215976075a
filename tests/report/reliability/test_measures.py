"""Calibration errors and temperatures against plain loops and scipy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from scipy.special import expit, log_softmax, softmax  # type: ignore[import-untyped]

from spacy_distil.ner.batch import Batch
from spacy_distil.ner.decoding import doc_cuts
from spacy_distil.ner.schemes import n_tags
from spacy_distil.report.reliability.evidence import Answers, Choices, Entities, minimize
from spacy_distil.report.reliability.judged import Judged
from spacy_distil.report.reliability.measures import (
    MEASURES,
    calibration_error,
    coverage_curve,
    error_by_chance,
    make_bins,
    measure,
    measure_pipes,
)
from tests.ner.test_marginals import by_brute_force, spell


def naive_error(confidence: np.ndarray, correct: np.ndarray, n_bins: int) -> float:
    total = 0.0
    for i in range(n_bins):
        own = (confidence > i / n_bins) & (confidence <= (i + 1) / n_bins)
        if own.any():
            total += own.sum() * abs(confidence[own].mean() - correct[own].mean())
    return total / len(confidence)


def judged(docs: Any, confidence: Any, correct: Any) -> Judged:
    p, right = np.array(confidence, dtype="d"), np.array(correct, dtype=bool)
    numbers = np.array(docs, dtype=np.int64)
    losses = -np.log(np.where(right, p, 1 - p))
    ones = np.ones(len(p), dtype=np.int64)
    return Judged("tokens", numbers, p, right, (p - right) ** 2, losses, numbers, ones)


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
    found = measure([judged([0], [0.5], [True])], 3)
    assert (found.n, found.accuracy, found.confidence, found.ece.mean) == (1, 1.0, 0.5, 0.5)
    nothing = measure([judged([], [], [])], 3)
    assert (nothing.n, nothing.accuracy, nothing.bins, nothing.coverage) == (0, 0.0, [], [])
    for name in MEASURES:
        assert getattr(nothing, name).mean == 0
        assert getattr(nothing, name).interval == (0, 0)


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 3.0])
def test_choices(true_temperature: float) -> None:
    """Truth drawn at a temperature: it is found again, as scipy finds it."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (5_000, 6))
    probs = softmax(logits / true_temperature, axis=1)
    truth = np.array([rng.choice(6, p=row) for row in probs])
    evidence = Choices("tokens", logits.astype("f"), truth, np.arange(5_000) // 10)
    (found,) = evidence.fit()

    def loss(t: float) -> float:
        return float(-log_softmax(logits / t, axis=1)[np.arange(5_000), truth].mean())

    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-6}).x
    assert found == pytest.approx(best, rel=2e-3)
    assert found == pytest.approx(true_temperature, rel=0.06)
    scores = measure([evidence.judge([found])], 500)
    own = softmax(logits / found, axis=1)
    onehot = np.eye(6)[truth]
    assert scores.log_loss.mean == pytest.approx(loss(found), rel=1e-5)
    assert scores.brier.mean == pytest.approx(((own - onehot) ** 2).sum(axis=1).mean(), rel=1e-5)
    assert scores.accuracy == (own.argmax(axis=1) == truth).mean()
    assert scores.ece.mean < 0.02
    as_it_is = evidence.judge().losses.mean()
    assert as_it_is == pytest.approx(loss(1.0), rel=1e-5)


def test_answers() -> None:
    rng = np.random.default_rng(1)
    log_odds = rng.normal(0, 3, (4_000, 3))
    truth = rng.random((4_000, 3)) < expit(log_odds / np.array([0.5, 2.0, 1.0]))
    truth[:, 2] = True  # only one answer: nothing to fit
    known = rng.random((4_000, 3)) < 0.9
    evidence = Answers(log_odds, truth, known, np.arange(4_000))
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
    scores = measure([evidence.judge(found)], 4_000)
    assert np.bincount(evidence.judge().docs).tolist() == known.sum(axis=1).tolist()
    yes = expit(log_odds / np.array(found))[known]
    assert scores.brier.mean == pytest.approx(((yes - truth[known]) ** 2).mean())
    assert scores.accuracy == ((yes >= 0.5) == truth[known]).mean()
    assert evidence.n == known.any(axis=1).sum()


@pytest.mark.parametrize("scheme", ["BILUO", "IOB2", "IOB1", "IO"])
def test_entities(scheme: Any) -> None:
    """The likelihood is the probability of the true reading, by brute force."""
    rng = np.random.default_rng(2)
    nothing = np.zeros(5, bool)
    batches, losses, correct = [], {1.0: [], 2.5: []}, []  # type: ignore[var-annotated]
    for i in range(10):
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
        for t, of_docs in losses.items():
            of_docs.append(-np.log(by_brute_force({**case, "scores": scores / t})[chosen]))
        batch = Batch(scheme, [5], scores, doc_cuts([5]), nothing, nothing)
        batches.append((batch, np.array(spell(chosen, case)), np.array([2 * i])))
    # The same documents, five in each batch.
    joined = []
    for half in (batches[:5], batches[5:]):
        scores = np.concatenate([batch.scores for batch, *_ in half])
        batch = Batch(scheme, [5] * 5, scores, doc_cuts([5] * 5), *np.zeros((2, 25), bool))
        tags, numbers = (np.concatenate(each) for each in [*zip(*half, strict=True)][1:])
        joined.append(Entities([(batch, tags, numbers)]))
    evidence = Entities(batches)
    for t, expected in losses.items():
        one = evidence.judge([t])
        np.testing.assert_allclose(one.losses, expected, rtol=1e-5)
        assert one.loss_docs.tolist() == [*range(0, 20, 2)]
        assert one.loss_counts.tolist() == [5] * 10
        scores_at = measure([one], 20)
        assert scores_at.log_loss.mean == pytest.approx(np.sum(expected) / 50, rel=1e-5)
        assert (scores_at.n, scores_at.accuracy) == (len(correct), np.mean(correct))
        other = Entities.join(joined).judge([t])
        for name, values in vars(one).items():
            if name != "what":
                np.testing.assert_allclose(getattr(other, name), values, rtol=1e-5, err_msg=name)
    assert evidence.n == 50
    (found,) = evidence.fit()
    at_best = evidence.judge([found]).losses.sum()
    assert all(
        at_best <= evidence.judge([found * f]).losses.sum() + 1e-7 for f in (0.9, 0.98, 1.02, 1.1)
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


def test_intervals_against_a_naive_bootstrap() -> None:
    """Documents are drawn, with all of their predictions."""
    rng = np.random.default_rng(7)
    n_docs = 60
    docs = np.sort(rng.integers(0, n_docs - 5, 500))  # the last ones have no predictions
    confidence = rng.uniform(0.3, 1, 500)
    correct = rng.random(500) < confidence**2
    own = judged(docs, confidence, correct)
    found = measure([own], n_docs)
    assert found.ece.mean == pytest.approx(calibration_error(confidence, correct))
    adaptive = calibration_error(confidence, correct, adaptive=True)
    assert found.adaptive_ece.mean == pytest.approx(adaptive)
    assert found.brier.mean == pytest.approx(own.squares.mean())
    assert found.log_loss.mean == pytest.approx(own.losses.mean())
    samples: dict[str, list[float]] = {"ece": [], "brier": [], "log_loss": []}
    for _ in range(2_000):
        drawn = rng.integers(0, n_docs, n_docs)
        rows = np.concatenate([np.flatnonzero(docs == doc) for doc in drawn])
        samples["ece"].append(calibration_error(confidence[rows], correct[rows]))
        samples["brier"].append(float(own.squares[rows].mean()))
        samples["log_loss"].append(float(own.losses[rows].mean()))
    for name, values in samples.items():
        score = getattr(found, name)
        shifted = np.array(values)
        if name == "ece":
            assert np.mean(values) > score.mean  # chance adds to the error
            shifted += score.mean - np.mean(values)
        expected = np.quantile(shifted, [0.025, 0.975])
        np.testing.assert_allclose(score.interval, expected, atol=0.1 * np.ptp(expected))
        assert score.interval[0] < score.mean < score.interval[1]


def test_seeds() -> None:
    rng = np.random.default_rng(8)
    docs, confidence = np.arange(200) // 2, rng.uniform(0.5, 1, 200)
    seeds = [judged(docs, confidence, rng.random(200) < confidence - i / 10) for i in range(3)]
    found = measure(seeds, 100)
    alone = [measure([seed], 100) for seed in seeds]
    assert found.bins == alone[0].bins
    assert found.accuracy == alone[0].accuracy
    for name in MEASURES:
        score = getattr(found, name)
        values = [getattr(each, name).mean for each in alone]
        assert score.seeds == values
        assert (score.mean, score.std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
        widths = [np.ptp(getattr(each, name).interval) for each in (found, *alone)]
        assert widths[0] < np.mean(widths[1:])
    pipes = measure_pipes([{"a": seeds[0], "b": seeds[0]}, {"b": seeds[1]}], 100)
    assert [*pipes] == ["b"]


def test_judged_on_disk(tmp_path: Path) -> None:
    own = judged([0, 2], [0.25, 0.5], [True, False])
    own.save(tmp_path / "ner ü.npz")
    again = Judged.load(tmp_path / "ner ü.npz")
    assert again.what == "tokens"
    for name, values in vars(own).items():
        assert np.array_equal(getattr(again, name), values), name
    assert again.correct.dtype == bool
