"""Results of `measure_robustness`."""

from __future__ import annotations

from dataclasses import dataclass

from spacy_distil.report.bootstrap import Interval
from spacy_distil.report.means import MeanScore
from spacy_distil.report.results import Results


@dataclass(frozen=True)
class Noise:
    """One kind of noise at one rate.

    changed: share of the tokens of the test set that differ, 0 to 1.
    """

    kind: str
    rate: float
    changed: float


@dataclass(frozen=True)
class NoisyScores:
    """Scores of one pipeline under one noise.

    scores: by `Column.key`.
    drops: of each score from the clean text, 0 to 1, with the paired interval over documents.
    """

    noise: Noise
    scores: dict[str, MeanScore]
    drops: dict[str, tuple[float, Interval | None]]


@dataclass(frozen=True)
class RobustPipeline:
    """Results of one pipeline. clean: scores by `Column.key`."""

    name: str
    pipeline: str
    clean: dict[str, MeanScore]
    noisy: list[NoisyScores]


@dataclass(frozen=True, kw_only=True)
class Robustness(Results):
    """Results of `robustness`.

    test: path of the test set.
    n_docs: number of documents in it.
    seed: of the noise.
    rows: by pipeline, in the order of the tables.
    unchanged: kinds that change nothing in this test set.
    """

    test: str
    n_docs: int
    seed: int
    rows: list[RobustPipeline]
    unchanged: list[str]
