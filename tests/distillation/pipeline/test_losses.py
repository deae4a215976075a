"""The soft-target losses against torch's own, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spacy_distil.distillation.pipeline.losses import (
    bernoulli_kl,
    scores_kl,
    softmax_kl,
    to_log_odds,
)
from spacy_distil.softmax import log_softmax, safe_log

ROWS, LABELS, K = 7, 11, 4
TEMPERATURES = pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
LOWEST = np.finfo(np.float32).min


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.softmax(torch.tensor(logits), dim=1).numpy()


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return torch.sigmoid(torch.tensor(logits)).numpy()


def torch_softmax_kl(logits: np.ndarray, targets: np.ndarray, temperature: float) -> Any:
    """Loss and gradient by F.kl_div and autograd."""
    student = torch.tensor(logits, requires_grad=True)
    loss = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.softmax(torch.tensor(targets) / temperature, dim=1),
        reduction="sum",
    )
    (loss * temperature**2).backward()
    return loss.item() * temperature**2, student.grad.numpy()


@TEMPERATURES
def test_softmax_equals_torch(temperature: float) -> None:
    logits, targets = rng().normal(0, 3, (2, ROWS, LABELS))
    expected_loss, expected = torch_softmax_kl(logits, targets, temperature)
    log_targets = F.log_softmax(torch.tensor(targets), dim=1).numpy()
    loss, d_logits = softmax_kl(softmax(logits), None, log_targets, temperature)
    assert loss == pytest.approx(expected_loss, rel=1e-9)
    np.testing.assert_allclose(d_logits, expected, rtol=0, atol=1e-9)


@TEMPERATURES
def test_the_most_probable_labels_are_all_that_there_is(temperature: float) -> None:
    """The reference gives the labels that are left out a score of minus infinity."""
    logits, targets = rng(1).normal(0, 3, (2, ROWS, LABELS))
    labels = np.argsort(-targets, axis=1)[:, :K]
    log_targets = np.take_along_axis(
        F.log_softmax(torch.tensor(targets), dim=1).numpy(), labels, axis=1
    )
    kept = np.full_like(targets, -np.inf)
    np.put_along_axis(kept, labels, np.take_along_axis(targets, labels, axis=1), axis=1)
    expected_loss, expected = torch_softmax_kl(logits, kept, temperature)
    loss, d_logits = softmax_kl(softmax(logits), labels, log_targets, temperature)
    assert loss == pytest.approx(expected_loss, rel=1e-9)
    np.testing.assert_allclose(d_logits, expected, rtol=0, atol=1e-9)


@TEMPERATURES
def test_softmax_gradient_by_finite_differences(temperature: float) -> None:
    logits, targets = rng(2).normal(0, 2, (2, ROWS, LABELS))
    labels = np.argsort(-targets, axis=1)[:, :K]
    log_targets = np.take_along_axis(targets, labels, axis=1)
    _, d_logits = softmax_kl(softmax(logits), labels, log_targets, temperature)
    for row, column in [(0, 0), (3, labels[3, 0]), (6, labels[6, 2]), (5, LABELS - 1)]:
        losses = []
        for step in (1e-5, -1e-5):
            moved = logits.copy()
            moved[row, column] += step
            losses.append(softmax_kl(softmax(moved), labels, log_targets, temperature)[0])
        difference = (losses[0] - losses[1]) / 2e-5
        assert d_logits[row, column] == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_a_sure_teacher_gives_the_gradient_of_cross_entropy() -> None:
    probs = softmax(rng(3).normal(0, 3, (ROWS, LABELS))).astype("f")
    gold = rng(4).integers(0, LABELS, ROWS)
    labels = np.stack([gold, (gold + 1) % LABELS], axis=1).astype(np.int16)
    log_targets = np.array([[0, -1e4]] * ROWS, dtype=np.float16)
    loss, d_logits = softmax_kl(probs, labels, log_targets, 1.0)
    assert d_logits.dtype == np.float32
    np.testing.assert_allclose(d_logits, probs - np.eye(LABELS)[gold], rtol=0, atol=1e-6)
    assert loss == pytest.approx(-np.log(probs[np.arange(ROWS), gold]).sum(), rel=1e-5)


@TEMPERATURES
def test_equal_distributions_have_no_loss(temperature: float) -> None:
    logits = rng(5).normal(0, 3, (ROWS, LABELS)).astype("f")
    probs = softmax(logits)
    labels = np.argsort(-probs, axis=1)
    listed = np.take_along_axis(safe_log(probs), labels, axis=1)
    odds = to_log_odds(sigmoid(logits))
    for loss, gradient in (
        softmax_kl(probs, None, safe_log(probs), temperature),
        softmax_kl(probs, labels, listed, temperature),
        scores_kl(logits, logits + 3, temperature),
        bernoulli_kl(sigmoid(logits), odds, temperature),
    ):
        assert loss == pytest.approx(0, abs=1e-5)
        assert np.abs(gradient).max() < 1e-6


def test_softmax_bears_certainty_on_both_sides() -> None:
    probs = np.array([[1, 0, 0], [0, 1, 0], [0, 0.5, 0.5]], dtype="f")
    log_targets = np.array([[0, -np.inf, -np.inf], [0, -np.inf, -np.inf], [-1, -1, -np.inf]])
    for temperature in (1.0, 2.0, 0.5):
        loss, d_logits = softmax_kl(probs, None, log_targets, temperature)
        assert np.isfinite(loss)
        assert np.isfinite(d_logits).all()
        np.testing.assert_allclose(d_logits[0], 0, rtol=0, atol=1e-6)
        np.testing.assert_allclose(d_logits[1], temperature * np.array([-1, 1, 0]), atol=1e-6)
    assert softmax_kl(probs[:1], None, log_targets[:1], 1.0)[0] == 0


@TEMPERATURES
def test_bernoulli_equals_torch(temperature: float) -> None:
    logits, targets = rng(6).normal(0, 3, (2, ROWS, LABELS))
    student = torch.tensor(logits, requires_grad=True)
    teacher_probs = torch.sigmoid(torch.tensor(targets) / temperature)
    student_probs = torch.sigmoid(student / temperature)
    expected = F.kl_div(student_probs.log(), teacher_probs, reduction="sum")
    expected = expected + F.kl_div((1 - student_probs).log(), 1 - teacher_probs, reduction="sum")
    (expected * temperature**2).backward()
    loss, d_logits = bernoulli_kl(sigmoid(logits), targets, temperature)
    assert loss == pytest.approx(expected.item() * temperature**2, rel=1e-9)
    np.testing.assert_allclose(d_logits, student.grad, rtol=0, atol=1e-9)


def test_bernoulli_bears_certainty_on_both_sides() -> None:
    probs = np.array([[0, 1, 0, 1]], dtype="f")
    log_odds = np.array([[-np.inf, np.inf, np.inf, -np.inf]], dtype="f")
    for temperature in (1.0, 2.0, 0.5):
        loss, d_logits = bernoulli_kl(probs, log_odds, temperature)
        assert np.isfinite(loss)
        np.testing.assert_allclose(d_logits[0] / temperature, [0, 0, -1, 1], rtol=0, atol=1e-3)
    agreeing, _ = bernoulli_kl(probs[:, :2], log_odds[:, :2], 1.0)
    assert agreeing == pytest.approx(0, abs=1e-6)


def test_bernoulli_in_float32_keeps_small_losses() -> None:
    """Far from zero, where differences of large logits would leave noise."""
    logits = np.array([[12.0, -12.0, 9.0, -40.0]])
    probs = sigmoid(logits)
    exact, _ = bernoulli_kl(probs, logits + 1, 1.0)
    loss, _ = bernoulli_kl(probs.astype("f"), (logits + 1).astype("f"), 1.0)
    assert 0 < exact < 1e-3
    assert loss == pytest.approx(exact, rel=0.02)


@TEMPERATURES
def test_scores_equal_torch(temperature: float) -> None:
    scores, targets = rng(7).normal(0, 5, (2, ROWS, LABELS))
    scores += rng(8).normal(0, 100, (ROWS, 1))
    expected_loss, expected = torch_softmax_kl(scores, targets, temperature)
    loss, d_scores = scores_kl(scores, targets, temperature)
    assert loss == pytest.approx(expected_loss, rel=1e-9)
    np.testing.assert_allclose(d_scores, expected, rtol=0, atol=1e-9)


@TEMPERATURES
@pytest.mark.parametrize("lowest", [LOWEST, -1e30, -np.inf])
def test_impossible_classes_are_left_out(lowest: float, temperature: float) -> None:
    """Impossible on both sides: as if the class were not there."""
    scores, targets = rng(9).normal(0, 5, (2, ROWS, LABELS)).astype("f")
    expected_loss, expected = scores_kl(scores[:, 1:], targets[:, 1:], temperature)
    scores[:, 0] = targets[:, 0] = lowest
    loss, d_scores = scores_kl(scores, targets, temperature)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    np.testing.assert_allclose(d_scores[:, 1:], expected, rtol=0, atol=1e-6)
    assert (d_scores[:, 0] == 0).all()


@TEMPERATURES
@pytest.mark.parametrize("lowest", [LOWEST, -1e30, -np.inf])
def test_classes_that_one_side_finds_impossible(lowest: float, temperature: float) -> None:
    scores, targets = rng(10).normal(0, 5, (2, ROWS, LABELS)).astype("f")
    scores[:, 0], targets[:, 1] = lowest, lowest
    scores[0], targets[1] = lowest, lowest
    loss, d_scores = scores_kl(scores, targets, temperature)
    assert np.isfinite(loss)
    assert np.isfinite(d_scores).all()
    np.testing.assert_allclose(d_scores.sum(axis=1), 0, rtol=0, atol=1e-5)
    assert (d_scores[2:, 0] < 0).all()
    assert (d_scores[2:, 1] > 0).all()


def test_no_rows() -> None:
    nothing = np.zeros((0, LABELS), dtype="f")
    labels = np.zeros((0, K), dtype=np.int16)
    for loss, gradient in (
        softmax_kl(nothing, labels, nothing[:, :K], 1.0),
        softmax_kl(nothing, None, nothing, 2.0),
        scores_kl(nothing, nothing, 1.0),
        bernoulli_kl(nothing, nothing, 1.0),
    ):
        assert loss == 0
        assert gradient.shape == (0, LABELS)


def test_log_softmax_equals_torch() -> None:
    scores = rng(11).normal(0, 50, (ROWS, LABELS))
    expected = F.log_softmax(torch.tensor(scores) / 3, dim=1)
    np.testing.assert_allclose(log_softmax(scores, 3.0), expected, rtol=1e-12, atol=1e-12)


def test_log_odds_are_the_logits() -> None:
    logits = rng(12).normal(0, 4, (ROWS, LABELS))
    np.testing.assert_allclose(to_log_odds(sigmoid(logits)), logits, rtol=1e-9, atol=1e-9)
    assert np.isfinite(to_log_odds(np.array([[0.0, 1.0]], dtype="f"))).all()
