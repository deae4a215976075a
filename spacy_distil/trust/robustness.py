"""Scores of pipelines on noisy text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from random import Random
from typing import Any

from spacy.language import Language
from spacy.training import Example

from spacy_distil.errors import ConfigError
from spacy_distil.noise import CASING, KINDS, add_noise
from spacy_distil.pipelines import check_pipeline, import_code, load_pipeline
from spacy_distil.report import bootstrap
from spacy_distil.report.aggregation import aggregate
from spacy_distil.report.layout import count
from spacy_distil.report.machine import describe_machine
from spacy_distil.report.results import check_results_directory
from spacy_distil.report.scores import COLUMNS, TaskScores, score_examples
from spacy_distil.report.verdicts import find_missing_categories
from spacy_distil.text.documents import check_test_set, read_examples
from spacy_distil.trust.robustness_page import write_robustness
from spacy_distil.trust.robustness_results import Noise, NoisyScores, Robustness, RobustPipeline

RATES = (0.05, 0.15, 0.3)
# Draws that tell whether a kind of noise can change a document. One may fail: the doubled letter of
# "aa" swapped with the other.
_TRIES = 3
# The tables and plots of fewer documents are mostly chance.
FEW = 50


def measure_robustness(
    pipelines: Mapping[str, str | Path],
    test: str | Path,
    output: str | Path | None = None,
    *,
    kinds: Sequence[str] = KINDS,
    rates: Sequence[float] = RATES,
    seed: int = 0,
    limit: int = 0,
    batch_size: int = 64,
    code: str | Path | None = None,
    title: str = "",
    command: str = "",
    log: Callable[[str], Any] = lambda message: None,
) -> Robustness:
    """Score pipelines on clean and on noisy text.

    All pipelines read the same noisy texts, and tokenize them by themselves. The annotation stays
    with its words. The keyboard is the one of the first pipeline's language.

    pipelines: path or package of each pipeline by its name in the tables.
    test: annotated documents, .spacy.
    output: directory for robustness.json, .md, .png and .html; `None` to write nothing.
    kinds: of `KINDS`.
    rates: shares of the words that change, of those that a kind can change. Casing changes all.
        Repeated ones count once.
    seed: of the noise.
    limit: only the first N documents; 0 for all.
    batch_size: documents processed at a time.
    code, title, command, log: as in `compare`.
    """
    test = Path(test)
    output = None if output is None else Path(output)
    _check(pipelines, test, kinds=kinds, rates=rates, limit=limit, batch_size=batch_size)
    if output is not None:
        check_results_directory(output, command="robustness")
    import_code(code)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    rows: list[RobustPipeline] = []
    n_docs = n_words = 0
    lang, possible = "", list(dict.fromkeys(kinds))
    lacking: list[str] = []
    for name, path in pipelines.items():
        nlp = load_pipeline(str(path))
        examples = read_examples(nlp, test, limit=limit)
        if not rows:
            lang = str(nlp.lang)
            possible = [kind for kind in possible if _is_possible(kind, examples, lang)]
        log(f"{name}: clean text")
        clean = score_examples(nlp, examples, batch_size=batch_size)
        lacking += find_missing_categories(name, clean)
        n_docs, n_words = len(examples), sum(len(each.predicted) for each in examples)
        noisy = []
        for kind, rate in _conditions(possible, rates):
            noisy_examples, changed = make_noisy(nlp, examples, kind, rate, seed, lang=lang)
            log(f"{name}: {kind}, {rate:.0%}")
            scores = score_examples(nlp, noisy_examples, batch_size=batch_size)
            noisy.append(_describe(Noise(kind, rate, changed), scores, clean))
        rows.append(RobustPipeline(name, str(path), aggregate([clean]), noisy))
    result = Robustness(
        title=title,
        n_words=n_words,
        machine=describe_machine(),
        date=date,
        command=command,
        verdicts=[*_verdicts(rows, n_docs), *lacking],
        test=str(test),
        n_docs=n_docs,
        seed=seed,
        rows=rows,
        unchanged=[kind for kind in dict.fromkeys(kinds) if kind not in possible],
    )
    if output is not None:
        write_robustness(result, output)
    return result


def _conditions(kinds: Sequence[str], rates: Sequence[float]) -> list[tuple[str, float]]:
    return [
        (kind, rate) for kind in kinds for rate in ([1.0] if kind in CASING else sorted({*rates}))
    ]


def _is_possible(kind: str, examples: Sequence[Example], lang: str) -> bool:
    """Whether a kind of noise can change one of the documents."""
    return any(
        add_noise(doc, kind, 1.0, Random(i), lang=lang).text != doc.text
        for doc in (example.reference for example in examples)
        for i in range(_TRIES)
    )


def make_noisy(
    nlp: Language, examples: Sequence[Example], kind: str, rate: float, seed: int, *, lang: str
) -> tuple[list[Example], float]:
    """Make noisy examples. lang: of the keyboard.

    RETURNS: them, and the share of the tokens that differ.
    """
    noisy, changed, total = [], 0, 0
    for i, example in enumerate(examples):
        # A text has the same noise for all pipelines.
        rng = Random(f"{seed} {kind} {rate} {i}")
        old = example.reference
        new = add_noise(old, kind, rate, rng, lang=lang)
        if len(new) == len(old):
            changed += sum(a.text != b.text for a, b in zip(old, new, strict=True))
        else:
            changed += len(new) - len(old)
        total += len(old)
        noisy.append(Example(nlp.make_doc(new.text), new))
    return noisy, changed / max(1, total)


def _describe(noise: Noise, scores: TaskScores, clean: TaskScores) -> NoisyScores:
    drops = {}
    for column in COLUMNS:
        if column.key not in scores.values or column.key not in clean.values:
            continue
        interval = None
        if column.counts in scores.counts and column.counts in clean.counts:
            interval = bootstrap.paired_interval(
                column.metric, clean.counts[column.counts], scores.counts[column.counts]
            )
        drops[column.key] = (clean.values[column.key] - scores.values[column.key], interval)
    return NoisyScores(noise, aggregate([scores]), drops)


def _verdicts(rows: Sequence[RobustPipeline], n_docs: int) -> list[str]:
    verdicts = []
    if n_docs < FEW:
        verdicts.append(
            f"A test set of {count(n_docs, 'document')} tells little. Take a larger one."
        )
    verdicts += [
        f"{row.name} has no score on these documents: they lack annotation for its pipes."
        for row in rows
        if not row.clean
    ]
    return verdicts


def _check(
    pipelines: Mapping[str, str | Path],
    test: Path,
    *,
    kinds: Sequence[str],
    rates: Sequence[float],
    limit: int,
    batch_size: int,
) -> None:
    if not pipelines:
        raise ConfigError("No pipelines to measure: expected one PIPELINE or more.")
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"{kind!r} is no kind of noise. Kinds: {', '.join(KINDS)}.")
    for rate in rates:
        if not 0 < rate <= 1:
            raise ConfigError(f"rate = {rate}: expected a share above 0, and 1 at most.")
    if not kinds or not rates:
        raise ConfigError("Nothing to measure: expected one kind of noise or more, and one rate.")
    if batch_size < 1 or limit < 0:
        raise ConfigError(
            f"batch_size = {batch_size}, limit = {limit}: expected at least 1, and 0 or more."
        )
    check_test_set(test)
    for path in pipelines.values():
        check_pipeline(str(path))
