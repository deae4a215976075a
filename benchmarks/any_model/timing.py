"""Timing several ways to process the same texts, in turns, in one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import torch
from wasabi import msg

from benchmarks.common.cells import rate, ratio
from benchmarks.common.rounds import Rounds, describe_round, in_turn
from spacy_distil.tables import Table

Side = Callable[[Sequence[str]], object]


def limit_threads(threads: int) -> None:
    """Limit this process to a number of threads; one thread is also pinned to one core.

    ONNX Runtime counts the cores that the process may use. Call this before any session is open.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def describe_threads(threads: int) -> str:
    return "1 core" if threads == 1 else f"{threads} threads"


def measure(
    sides: Mapping[str, Side], texts: Sequence[str], n_words: int, *, repeats: int
) -> Rounds:
    """Run all sides over the texts, round by round, after a warm-up.

    n_words: number of spaCy tokens of the texts, which counts for all sides.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        msg.text(describe_round(turn, repeats))
        for name in in_turn(sides, turn):
            start = perf_counter()
            sides[name](texts)
            if turn:
                seconds[name].append(perf_counter() - start)
    return Rounds(seconds, [n_words] * repeats)


def make_table(title: str, rounds: Rounds, reference: str) -> Table:
    """Make the table of all sides. reference: the side that the others are compared with."""
    rows = [
        [name, rate(rounds.words_per_second(name)), ratio(rounds.ratio(name, reference))]
        for name in rounds.seconds
    ]
    return Table(title, ["", "words/s", f"against {reference}"], rows)
