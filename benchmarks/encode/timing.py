"""Timing of encoding and of training epochs, in rounds."""

from __future__ import annotations

import gc
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import spacy
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Config, Optimizer

from benchmarks.common.project import TRANSFORMER_CONFIG
from benchmarks.common.rounds import Rounds, describe_round, in_turn, now
from benchmarks.encode.sides import ENCODER, PipelineSide

# The rate that spaCy's quickstart config for transformers reaches after its warm-up.
LEARN_RATE = 5e-5
# Size of the warm-up of encoding and of training. The longest docs are always part of it.
WARM_UP_DOCS, WARM_UP_BATCHES = 32, 2

# Prepares a round (0: the warm-up) and returns the function to time. That function returns its
# number of words.
Task = Callable[[int], Callable[[], int]]


def measure(tasks: Mapping[str, Task], rounds: int, *, log: Callable[[str], None]) -> Rounds:
    """Time each task in each round, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    words: list[int] = []
    for turn in range(rounds + 1):
        log(describe_round(turn, rounds))
        counts: set[int] = set()
        for name in in_turn(tasks, turn):
            run = tasks[name](turn)
            gc.collect()
            started = now()
            counts.add(run())
            if turn:
                seconds[name].append(now() - started)
        if len(counts) != 1:
            raise ValueError(f"Not all tasks processed the same words: {counts}.")
        if turn:
            words += counts
    return Rounds(seconds, words)


def encoding(nlp: Language, texts: Sequence[str], batch_size: int) -> Task:
    """Make a task that passes all documents through `nlp.pipe`, with the encoder alone."""
    warm_up = [*texts[:WARM_UP_DOCS], max(texts, key=len)]

    def prepare(turn: int) -> Callable[[], int]:
        docs = [nlp.make_doc(text) for text in (texts if turn else warm_up)]

        def run() -> int:
            with nlp.select_pipes(enable=[ENCODER]):
                return sum(map(len, nlp.pipe(_release(docs), batch_size=batch_size)))

        return run

    return prepare


def _release(docs: list[Doc]) -> Iterator[Doc]:
    """Yield the docs, keeping no reference to those that were taken."""
    docs.reverse()
    while docs:
        yield docs.pop()


def training(side: PipelineSide, config: Config | None = None) -> Task:
    """Make a task that trains for one epoch. The number of the round decides the order of the
    documents, so that it is the same for all sides.

    config: of `spacy train`, for batches, optimizer and dropout; `None` for the template.
    """
    settings = (config or spacy.util.load_config(TRANSFORMER_CONFIG))["training"]
    optimizer = {**settings["optimizer"], "learn_rate": LEARN_RATE}
    registry: Any = spacy.registry
    resolved = registry.resolve({"optimizer": optimizer, "batcher": settings["batcher"]})

    def prepare(turn: int) -> Callable[[], int]:
        examples = list(side.examples)
        random.Random(turn).shuffle(examples)
        batches = list(resolved["batcher"](examples))
        if not turn:
            longest = max(batches, key=lambda batch: max(map(len, batch)))
            batches = [*batches[:WARM_UP_BATCHES], longest]

        def run() -> int:
            for batch in batches:
                update(side.nlp, batch, resolved["optimizer"], drop=settings["dropout"])
            return sum(len(example.predicted) for example in itertools.chain(*batches))

        return run

    return prepare


def update(nlp: Language, batch: list[Example], optimizer: Optimizer, *, drop: float) -> None:
    """Train on a batch as `spacy train` does: all gradients first, then a step of each pipe."""
    nlp.update(batch, drop=drop, sgd=False)  # type: ignore[arg-type]
    for _, pipe in nlp.pipeline:
        pipe.finish_update(optimizer)  # type: ignore[attr-defined]
    optimizer.step_schedules()
