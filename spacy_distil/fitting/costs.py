"""The costs of a pipeline, measured on the machine that it is fitted on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

from spacy_distil.fitting.settings import FitSettings
from spacy_distil.pipelines import count_bytes
from spacy_distil.report.process import PipelineSource
from spacy_distil.report.speed import measure

# Pipelines that are in memory at a time, and take turns.
_AT_ONCE = 8
ROUNDS, LATENCY_TEXTS = 5, 60
# How costs are called in messages and tables: a format, and what stands for a limit.
_FORMATS = {
    "words_per_second": ("{:,.0f} words/s", "at least"),
    "latency_ms": ("{:.1f} ms", "at most"),
    "size_mb": ("{:.1f} MB on disk", "at most"),
    "memory_mb": ("{:,.0f} MB of memory", "at most"),
}


@dataclass(frozen=True)
class Costs:
    """The costs of a pipeline. All but the size are None if it was not timed.

    size_mb: size on disk, in millions of bytes.
    words_per_second: spaCy tokens per second of wall time, median of the rounds.
    p50_ms, p95_ms: milliseconds of `nlp(text)`, percentiles over texts, medians of the rounds.
    memory_mb: peak resident memory of its process, in millions of bytes.
    """

    size_mb: float
    words_per_second: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    memory_mb: float | None = None

    @property
    def is_timed(self) -> bool:
        return self.words_per_second is not None

    def get(self, name: str, percentile: int) -> float | None:
        """Return a cost by the name of its limit in `FitSettings`."""
        found: float | None = getattr(self, f"p{percentile}_ms" if name == "latency_ms" else name)
        return found

    def seconds_per_word(self) -> float:
        """Return the time for a word, of a pipeline that was timed."""
        assert self.words_per_second is not None
        return 1 / self.words_per_second

    def to_dict(self) -> dict[str, float]:
        """All costs for JSON."""
        return asdict(self)


def find_misses(costs: Costs, settings: FitSettings) -> list[str]:
    """Say which limits a pipeline misses: ["25,312 words/s (at least 30,000)"]."""
    return [
        describe(name, value, settings.limits[name])
        for name, value, excess in _compare(costs, settings)
        if excess > 1
    ]


def find_all(costs: Costs, settings: FitSettings) -> list[str]:
    """Say what is known of each cost that is limited, as `find_misses` does."""
    return [
        describe(name, value, settings.limits[name]) for name, value, _ in _compare(costs, settings)
    ]


def describe(name: str, value: float, limit: float) -> str:
    """Describe a cost beside its limit."""
    form, relation = _FORMATS[name]
    return f"{form.format(value)} ({relation} {limit:,g})"


def describe_limit(name: str, limit: float) -> str:
    """Describe a limit: "at least 30,000 words/s"."""
    form, relation = _FORMATS[name]
    unit = form.split(" ", 1)[1]
    return f"{relation} {limit:,g} {unit}"


def distance(costs: Costs, settings: FitSettings) -> float:
    """Return how far a pipeline is from the budget: the largest factor that it misses a limit by.

    1 or less fits.
    """
    return max((excess for _, _, excess in _compare(costs, settings)), default=0.0)


def _compare(costs: Costs, settings: FitSettings) -> Iterator[tuple[str, float, float]]:
    """Compare the costs that are known with their limits.

    YIELDS: (name, cost, factor that it misses the limit by).
    """
    for name, limit in settings.limits.items():
        value = costs.get(name, settings.percentile)
        if value is None:
            continue
        if name == "words_per_second":
            yield name, value, limit / value if value else inf
        else:
            yield name, value, value / limit


def order_key(costs: Costs, settings: FitSettings) -> float:
    """Return what is minimized: the cost that `minimize` names, of which less is better.

    costs: of a pipeline that was timed.
    """
    value = costs.get(settings.minimize, settings.percentile)
    assert value is not None
    return -value if settings.minimize == "words_per_second" else value


def measure_costs(
    pipelines: Mapping[str, Path],
    texts: Sequence[str],
    settings: FitSettings,
    *,
    code: str | None = None,
    log: Callable[[str], Any] = lambda message: None,
) -> dict[str, Costs]:
    """Measure pipelines, each in a process of its own, in turns.

    pipelines: directories by name.
    texts: to run over.
    """
    names, found = list(pipelines), {}
    for start in range(0, len(names), _AT_ONCE):
        part = names[start : start + _AT_ONCE]
        log(f"Timing {', '.join(part)}")
        speeds = measure(
            {name: PipelineSource(str(pipelines[name]), code=code) for name in part},
            texts,
            repeats=ROUNDS,
            load_repeats=1,
            threads=settings.cores,
            batch_sizes=[settings.batch_size],
            latency_texts=min(LATENCY_TEXTS, len(texts)),
        )
        for name, speed in speeds.items():
            latency = {p: speed.latency(p) for p in (50, 95)}
            found[name] = Costs(
                words_per_second=speed.words_per_second(settings.batch_size).median,
                p50_ms=1000 * (spread.median if (spread := latency[50]) else 0.0),
                p95_ms=1000 * (spread.median if (spread := latency[95]) else 0.0),
                size_mb=count_bytes(pipelines[name]) / 1e6,
                memory_mb=speed.peak_rss_bytes / 1e6,
            )
    return found
