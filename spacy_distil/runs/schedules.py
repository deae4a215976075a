"""Steps, warm-up and evaluations of a run, from the size of its corpus."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

# Passes over the training corpus.
PASSES = 8
# Pipes with random weights need some steps before they have learned anything: with fewer steps in a
# pass, batches get smaller, but not smaller than `FEWEST_WORDS`. On 2,000 words of UD English EWT,
# 8 and 32 passes in batches of 100 words reached an entity F of 39 and 41; 8, 16 and 32 passes in
# batches of 50 words 46, 49 and 44.
STEPS_PER_PASS = 100
FEWEST_WORDS = 50
# With fewer steps in the run, there are more passes, up to `MOST_PASSES`.
FEWEST_STEPS = 600
MOST_PASSES = 40
# As in spaCy's default config.
MOST_STEPS = 20_000
EVALUATIONS = 10
MOST_WARMUP = 100

# Of encoder distillation. A student encoder starts from trained layers, and sees text only.
ENCODER_PASSES = 3
FEWEST_BLOCKS = 8


@dataclass(frozen=True)
class TrainingSchedule:
    """How long a pipeline trains.

    words: size of a batch.
    steps: of the run.
    warmup: the steps in which the learning rate rises.
    eval_frequency: steps between evaluations.
    """

    words: int
    steps: int
    warmup: int
    eval_frequency: int


@dataclass(frozen=True)
class EncoderSchedule:
    """How long an encoder is distilled.

    batch_size: blocks in a step.
    epochs: passes over the corpus.
    log_frequency, eval_frequency: steps between log entries, and between evaluations.
    """

    batch_size: int
    epochs: int
    log_frequency: int
    eval_frequency: int


def fit_training(
    n_words: int,
    *,
    batch_words: int,
    passes: float | None = None,
    min_steps: int = FEWEST_STEPS,
) -> TrainingSchedule:
    """Fit the training of a pipeline to its corpus.

    n_words: tokens of the corpus.
    batch_words: size of a batch for large corpora, the most words that a batch gets.
    passes: over the corpus; None for `PASSES`, or fewer if they would take more than `MOST_STEPS`.
    min_steps: with fewer steps there are more passes, up to `MOST_PASSES`.
    """
    words = min(batch_words, max(FEWEST_WORDS, n_words // STEPS_PER_PASS))
    per_pass = max(1.0, n_words / words)
    most = MOST_STEPS / per_pass if passes is None else math.inf
    chosen = min(most, _fit_passes(PASSES if passes is None else passes, per_pass, min_steps))
    between = max(1, round(chosen * per_pass / EVALUATIONS))
    steps = EVALUATIONS * between  # so that the last step is evaluated
    return TrainingSchedule(
        words=words, steps=steps, warmup=min(MOST_WARMUP, steps // 10), eval_frequency=between
    )


def fit_encoder(n_blocks: int, *, batch_size: int) -> EncoderSchedule:
    """Fit the distillation of an encoder to its corpus.

    n_blocks: blocks of pieces in the corpus.
    batch_size: blocks in a step for large corpora, the most that a step gets.
    """
    size = min(batch_size, max(FEWEST_BLOCKS, n_blocks // STEPS_PER_PASS))
    per_pass = max(1, n_blocks // size)
    epochs = math.ceil(_fit_passes(ENCODER_PASSES, per_pass, FEWEST_STEPS))
    between = max(1, min(200, epochs * per_pass // EVALUATIONS))
    return EncoderSchedule(
        batch_size=size,
        epochs=epochs,
        log_frequency=max(1, min(20, between // 5)),
        eval_frequency=between,
    )


def _fit_passes(passes: float, steps_per_pass: float, min_steps: int) -> float:
    """Raise a number of passes until they have enough steps."""
    return max(passes, min(MOST_PASSES, math.ceil(min_steps / steps_per_pass)))


def count_rising(rates: Iterable[float], n_steps: int) -> int:
    """Count the steps before a learning rate has reached its maximum.

    rates: one for each step; may be endless.
    n_steps: steps of the run.
    """
    seen = list(islice(rates, n_steps))
    return seen.index(max(seen)) if seen else 0
