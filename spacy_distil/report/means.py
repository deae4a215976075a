"""One figure of a pipeline: its mean over seeds, and how far it would move on other documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from spacy_distil.report.bootstrap import Floats, Interval, percentiles


@dataclass(frozen=True)
class MeanScore:
    """One score of a pipeline.

    mean: over the seeds.
    std: sample standard deviation over the seeds; `None` for a single seed.
    seeds: score of each seed.
    interval: bootstrap interval of the mean over documents; `None` if the counts of the documents
        are unknown.
    """

    mean: float
    std: float | None
    seeds: list[float]
    interval: Interval | None

    @classmethod
    def of(cls, seeds: Sequence[float], samples: Floats | None) -> MeanScore:
        """seeds: score of each seed. samples: bootstrap samples of their mean, (n,)."""
        return cls(
            mean=mean(seeds),
            std=stdev(seeds) if len(seeds) > 1 else None,
            seeds=[*seeds],
            interval=None if samples is None else percentiles(samples),
        )
