"""Warnings about a measurement: a score of 0, too few documents, or a pipeline that loses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from spacy_distil.report import bootstrap
from spacy_distil.report.aggregation import all_have, resample
from spacy_distil.report.layout import count
from spacy_distil.report.scores import COLUMNS, Column, TaskScores
from spacy_distil.report.speed import Spread

# With fewer documents, the bootstrap draws the same few again and again: its intervals are too
# narrow, and with one document they have no width at all.
FEWEST_DOCS = 10


def find_verdicts(
    scores: Mapping[str, Sequence[TaskScores]], rates: Mapping[str, Spread], *, n_docs: int
) -> list[str]:
    """Say which pipelines score 0, cannot be told apart, or are worse than another one.

    A difference counts if its paired bootstrap interval over documents is all on one side of 0. A
    pipeline is worse than another if a difference counts against it, none for it, and it is not
    faster beyond the range of the rounds.

    scores: of the seeds of each pipeline, by its name.
    rates: words/s of each pipeline.
    n_docs: number of documents in the test set.
    """
    tasks = [column for column in COLUMNS if column.is_task]
    samples = {
        name: {
            column: drawn
            for column in tasks
            if all_have(column, seeds) and (drawn := resample(column, seeds)) is not None
        }
        for name, seeds in scores.items()
    }
    unclear: dict[Column, list[str]] = {}
    worse: list[str] = []
    for pair in combinations(samples, 2):
        wins: dict[str, list[str]] = {name: [] for name in pair}
        for column in tasks:
            if not all(column in samples[name] for name in pair):
                continue
            difference = samples[pair[0]][column] - samples[pair[1]][column]
            if not difference.any():
                continue  # they make the same number of mistakes in each document
            low, high = bootstrap.percentiles(difference)
            if n_docs < FEWEST_DOCS or low <= 0 <= high:
                unclear.setdefault(column, []).append(" and ".join(pair))
            else:
                wins[pair[0] if low > 0 else pair[1]].append(column.title)
        for better, other in (pair, pair[::-1]):
            if wins[better] and not wins[other] and rates[better].max >= rates[other].min:
                worse.append(
                    f"{better} is better than {other} in {', '.join(wins[better])}, and not slower."
                )
    zeros = [
        f"{column.title} is 0 for {', '.join(names)}: nothing is right in "
        f"{count(n_docs, 'test document')}."
        for column in tasks
        if (names := [name for name, seeds in scores.items() if _is_zero(column, seeds)])
    ]
    missing = [
        line for name, seeds in scores.items() for line in find_missing_categories(name, seeds[0])
    ]
    return [*zeros, *missing, *_describe_unclear(unclear, n_docs), *worse]


def find_missing_categories(name: str, scores: TaskScores) -> list[str]:
    """Say how many categories of a pipeline no document has, if they spoil the macro-F.

    name: of the pipeline.
    """
    if "cats" not in scores.counts or "cats_macro_f" not in scores.values:
        return []
    has_docs = scores.counts["cats"][..., [0, 2]].sum(axis=(0, 2)) > 0  # hits and misses
    n_missing = int((~has_docs).sum())
    if not n_missing:
        return []
    return [
        f"No test document has {n_missing:,} of the {len(has_docs):,} categories of {name}. Each "
        "counts as 0 in its macro-F. Take documents that have all."
    ]


def _is_zero(column: Column, seeds: Sequence[TaskScores]) -> bool:
    """Tell whether all seeds score 0, although there is something to find."""
    return all(
        seed.values.get(column.key) == 0
        and (
            column.counts not in seed.counts or bool(seed.counts[column.counts][..., [0, 2]].any())
        )
        for seed in seeds
    )


def _describe_unclear(unclear: Mapping[Column, Sequence[str]], n_docs: int) -> Iterator[str]:
    documents = "1 document is" if n_docs == 1 else f"{n_docs:,} documents are"
    for column, pairs in unclear.items():
        yield f"{documents} too few to tell apart in {column.title}: {'; '.join(pairs)}."
