"""Schedules that fit a corpus."""

from __future__ import annotations

import pytest
from thinc.api import compounding, constant, warmup_linear

from spacy_distil.runs.schedules import (
    EVALUATIONS,
    MOST_PASSES,
    MOST_STEPS,
    TrainingSchedule,
    count_rising,
    fit_encoder,
    fit_training,
)

SIZES = (1, 300, 2_000, 10_000, 50_000, 200_000, 1_000_000, 30_000_000)


def test_what_the_default_config_says_fits_200_000_words() -> None:
    assert fit_training(200_000, batch_words=1000) == TrainingSchedule(1000, 1600, 100, 160)


def test_a_small_corpus_gets_small_batches_and_a_short_warmup() -> None:
    assert fit_training(10_000, batch_words=1000) == TrainingSchedule(100, 800, 80, 80)


@pytest.mark.parametrize("n_words", SIZES)
@pytest.mark.parametrize("batch_words", [1000, 4000])
def test_every_schedule_can_teach(n_words: int, batch_words: int) -> None:
    schedule = fit_training(n_words, batch_words=batch_words)
    assert 0 < schedule.words <= batch_words
    assert EVALUATIONS <= schedule.steps <= MOST_STEPS
    assert schedule.steps == EVALUATIONS * schedule.eval_frequency  # the last step is evaluated
    assert schedule.warmup <= schedule.steps // 10
    passes = schedule.steps * schedule.words / n_words
    # In a pass, there is a whole batch at least.
    assert passes <= MOST_PASSES * max(1, schedule.words / n_words) + 1
    if n_words * 8 <= MOST_STEPS * batch_words:
        assert passes >= 7.9


def test_a_number_of_passes() -> None:
    schedule = fit_training(50_000, batch_words=1000, passes=3, min_steps=0)
    assert (schedule.words, schedule.steps) == (500, 300)
    assert fit_training(50_000, batch_words=1000, passes=3).steps == 600
    assert fit_training(50_000, batch_words=1000, passes=3, min_steps=10_000).steps == 4_000


def test_more_words_never_mean_fewer_steps() -> None:
    words = [fit_training(n, batch_words=1000) for n in SIZES]
    assert [each.words for each in words] == sorted(each.words for each in words)
    blocks = [fit_encoder(n, batch_size=128) for n in (1, 50, 1_000, 20_000, 500_000)]
    assert [each.batch_size for each in blocks] == sorted(each.batch_size for each in blocks)


@pytest.mark.parametrize("n_blocks", [0, 1, 10, 100, 1_000, 20_000, 500_000])
def test_encoders(n_blocks: int) -> None:
    schedule = fit_encoder(n_blocks, batch_size=128)
    assert 1 <= schedule.batch_size <= 128
    assert 3 <= schedule.epochs <= MOST_PASSES
    n_steps = schedule.epochs * max(1, n_blocks // schedule.batch_size)
    assert 1 <= schedule.log_frequency <= schedule.eval_frequency <= max(1, n_steps // EVALUATIONS)
    if n_blocks == 500_000:
        assert (schedule.batch_size, schedule.epochs) == (128, 3)
    elif n_blocks >= 1_000:
        assert 550 <= n_steps <= 700


def test_rising_rates() -> None:
    assert count_rising(warmup_linear(1e-3, 100, 30), 30) == 29
    assert count_rising(warmup_linear(1e-3, 10, 100), 100) == 10
    assert count_rising(constant(1e-3), 30) == 0
    assert count_rising(compounding(1e-4, 1e-3, 1.01), 1000) < 300
    assert count_rising([], 30) == count_rising(constant(1e-3), 0) == 0
