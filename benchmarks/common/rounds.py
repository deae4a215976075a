"""Timings of several sides that take turns, round by round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter

import torch

from spacy_distil.report.speed import Spread


@dataclass(frozen=True)
class Rounds:
    """Seconds of each side in each round.

    seconds: by the side's name, one number per round.
    words: number of spaCy tokens (in distillation: pieces) in each round, the same for all sides.
    """

    seconds: dict[str, list[float]]
    words: list[int]

    def words_per_second(self, side: str) -> Spread:
        pairs = zip(self.words, self.seconds[side], strict=True)
        return Spread.of([words / seconds for words, seconds in pairs])

    def ratio(self, side: str, reference: str) -> Spread:
        """Words/s of a side divided by the words/s of another side, round by round."""
        pairs = zip(self.seconds[reference], self.seconds[side], strict=True)
        return Spread.of([theirs / mine for theirs, mine in pairs])


def in_turn(names: Iterable[str], turn: int) -> list[str]:
    """The order of the sides in a round. Every second round is reversed, so that no side always
    runs after the same one.
    """
    return list(names)[:: -1 if turn % 2 else 1]


def describe_round(turn: int, rounds: int) -> str:
    """turn: 0 for the warm-up."""
    return f"round {turn} of {rounds}" if turn else "warm-up"


def now() -> float:
    """Seconds of a clock that first waits for the GPU to finish its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter()
