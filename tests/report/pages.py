"""A comparison page of real predictions, without the minutes that speed takes to measure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import spacy

from spacy_distil.report.aggregation import aggregate, compute_retention
from spacy_distil.report.page import Page
from spacy_distil.report.predictions import read_references
from spacy_distil.report.process import Load, Pass
from spacy_distil.report.reliability.collecting import judge
from spacy_distil.report.reliability.measures import measure_pipes
from spacy_distil.report.results import ComparedPipeline, Comparison, ComparisonSettings
from spacy_distil.report.results_page import comparison_page
from spacy_distil.report.scores import score_and_predict
from spacy_distil.report.speed import Speed
from spacy_distil.text.documents import read_examples
from tests.report.test_comparison_table import MACHINE


def make_comparison_page(
    pipelines: Mapping[str, Path], gold: Path, *, teacher: str, verdicts: list[str]
) -> Page:
    """Score pipelines, and invent their speed. The first one is the slowest."""
    scored, judged = {}, {}
    for name, path in pipelines.items():
        nlp = spacy.load(path)
        scored[name] = score_and_predict(nlp, gold)
        judged[name] = judge(nlp, read_examples(nlp, gold), 64)
    comparison = Comparison(
        title="A <b>title</b>",
        test=str(gold),
        n_docs=scored[teacher][0].n_docs,
        n_words=scored[teacher][0].n_words,
        teacher=teacher,
        settings=ComparisonSettings(5, 3, 2, 256, 0, 2000, 0, 0.95),
        machine=MACHINE,
        date="2025-01-31T12:00:00+00:00",
        command="python -m spacy distil compare test.spacy --output 'a b'",
        verdicts=verdicts,
        rows=[
            ComparedPipeline(
                name=name,
                pipelines=[str(pipelines[name])],
                scores=aggregate([scores]),
                reliability=measure_pipes([judged[name]], scores.n_docs),
                retention=compute_retention([scores], [scored[teacher][0]]),
                n_parameters=scores.n_parameters,
                n_bytes=scores.n_bytes,
                speed=Speed(
                    [Load(2.5, 1.25, 0.1)],
                    passes=[Pass(0.0, 1000 * i, 0.5 / i, 256) for i in (place, place + 1)],
                    peak_rss_bytes=512_000_000,
                ),
                full_scores=[scores.full],
            )
            for place, (name, (scores, _)) in enumerate(scored.items(), start=1)
        ],
    )
    references = read_references(gold)
    return comparison_page(
        comparison, {name: kept for name, (_, kept) in scored.items()}, references
    )
