from __future__ import annotations

from typing import Any

import pytest

from spacy_distil.report.comparison_table import make_tables, to_markdown, to_text
from spacy_distil.report.means import MeanScore
from spacy_distil.report.process import Load, Pass
from spacy_distil.report.results import (
    ComparedPipeline,
    Comparison,
    ComparisonSettings,
    Retention,
)
from spacy_distil.report.speed import Speed

MACHINE: dict[str, Any] = {
    "cpu": "Abacus 3",
    "cores": 2,
    "logical_cores": 4,
    "memory_bytes": 8 * 2**30,
    "system": "Linux x86_64",
    "platform": "Linux-6.1-x86_64",
    "python": "3.11.7",
    "versions": {"spacy": "3.8.0", "torch": None},
}


def make_row(
    name: str,
    *,
    scores: dict[str, MeanScore],
    retention: dict[str, Retention],
    seconds: float,
    seeds: int = 1,
) -> ComparedPipeline:
    return ComparedPipeline(
        name=name,
        pipelines=[f"training/{name}-{i}" for i in range(seeds)],
        scores=scores,
        reliability={},
        retention=retention,
        n_parameters=22_713_216,
        n_bytes=91_234_567,
        speed=Speed(
            [Load(2.5, 1.25, 0.1)],
            passes=[Pass(0.0, 1000, seconds, 256)],
            peak_rss_bytes=512_000_000,
        ),
        full_scores=[{}] * seeds,
    )


@pytest.fixture
def comparison() -> Comparison:
    teacher = {
        "pos_acc": MeanScore(0.965, None, [0.965], (0.96, 0.97)),
        "ents_f": MeanScore(0.7, None, [0.7], None),
    }
    student = {"pos_acc": MeanScore(0.96, 0.0012, [0.959, 0.961], (0.955, 0.9651))}
    return Comparison(
        title="EWT",
        test="corpus/test.spacy",
        n_docs=316,
        n_words=25_684,
        teacher="teacher",
        settings=ComparisonSettings(5, 3, 2, 256, 0, 2000, 0, 0.95),
        machine=MACHINE,
        date="2025-01-31T12:00:00+00:00",
        command="",
        verdicts=[],
        rows=[
            make_row("teacher", scores=teacher, retention={}, seconds=0.5),
            make_row(
                "student",
                scores=student,
                retention={"pos_acc": Retention(0.99482, (0.991, 0.999))},
                seconds=0.2,
                seeds=2,
            ),
        ],
    )


def test_cells(comparison: Comparison) -> None:
    scores, retention, speed = make_tables(comparison)
    assert scores.header == ["pipeline", "UPOS acc", "NER F"]
    assert scores.rows == [
        ["teacher", "96.50 [96.0, 97.0]", "70.0"],
        ["student (2 seeds)", "96.00 ± 0.12 [95.5, 96.5]", "–"],  # noqa: RUF001
    ]
    assert retention.header == ["pipeline", "UPOS acc"]
    assert retention.rows == [["student (2 seeds)", "99.48 [99.1, 99.9]"]]
    assert speed.header[:3] == ["pipeline", "words/s", "× teacher"]  # noqa: RUF001
    assert speed.rows[1] == [
        "student",
        "5,000 (5,000–5,000)",  # noqa: RUF001
        "2.50",
        "22.7 M",
        "91.2",
        "512",
        "1.25",
        "2.50",
    ]


def test_without_a_teacher(comparison: Comparison) -> None:
    alone = Comparison(**{**vars(comparison), "teacher": None})
    scores, speed = make_tables(alone)
    assert scores.header == ["pipeline", "UPOS acc", "NER F"]
    assert len(speed.header) == len(speed.rows[0]) == 7


def test_markdown_names_the_machine_and_links_the_plot(comparison: Comparison) -> None:
    markdown = to_markdown(comparison, plot="metrics/compare.png")
    assert markdown.startswith("### EWT\n")
    assert "| teacher | 96.50 [96.0, 97.0] | 70.0 |\n" in markdown
    assert "|---|---:|---:|\n" in markdown
    assert "(metrics/compare.png)" in markdown
    assert "Abacus 3, 2 cores (4 logical), 8 GiB of memory; Linux x86_64" in markdown
    assert "spacy 3.8.0. 2025-01-31." in markdown
    assert "316 documents, 25,684 spaCy tokens" in markdown


def test_text_has_every_table(comparison: Comparison) -> None:
    text = to_text(comparison)
    for expected in ("Scores", "Retention", "Speed and size", "70.0", "99.48", "5,000"):
        assert expected in text
