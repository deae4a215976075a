"""A comparison and a benchmark as HTML pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spacy.tokens import Doc

from spacy_distil.report import benchmark_table, comparison_table
from spacy_distil.report.confusion import Confusion, count_confusions, make_matrix
from spacy_distil.report.differences import ANNOTATIONS, find_most_different
from spacy_distil.report.layout import count
from spacy_distil.report.page import Block, Commands, Figures, Group, Page, Prose, Warnings
from spacy_distil.report.plot import benchmark_panels, comparison_panels
from spacy_distil.report.predictions import Predictions
from spacy_distil.report.reliability.figures import make_figures
from spacy_distil.report.reliability.measures import Reliability
from spacy_distil.report.results import (
    Benchmark,
    BenchmarkedPipeline,
    ComparedPipeline,
    Comparison,
)
from spacy_distil.report.scores import COLUMNS
from spacy_distil.report.side_by_side import show_side_by_side

# By `Column.counts`.
_CONFUSIONS = {
    "pos": "UPOS tags",
    "tag": "XPOS tags",
    "ents": "entities",
    "cats": "categories",
}
_SPEED_NOTE = (
    "A line joins the pipelines that no other one beats in score and speed at once. Bars are the "
    "intervals over documents and the spread of the rounds."
)


def comparison_page(
    comparison: Comparison, predictions: Mapping[str, Predictions], references: Sequence[Doc]
) -> Page:
    """Make the page of a comparison.

    predictions: of the first seed of each pipeline, by name.
    references: the annotated documents.
    """
    scored = {row.name: row.scores for row in comparison.rows}
    return Page(
        title=comparison.title or "Comparison of pipelines",
        lead=f"{count(len(comparison.rows), 'pipeline')} on {comparison.test}: "
        f"{count(comparison.n_docs, 'document')}, {comparison.n_words:,} spaCy tokens. "
        f"{comparison.date[:10]}.",
        blocks=[
            Warnings(comparison.verdicts),
            *comparison_table.make_tables(comparison),
            Figures(
                "Accuracy against speed", comparison_panels(comparison).draw_each(), _SPEED_NOTE
            ),
            *_reliability(comparison.rows),
            *_differences(comparison, predictions, references),
            *_confusions(scored, predictions, references),
            Prose("How this was measured", comparison_table.describe(comparison)),
            Commands([comparison.command]),
        ],
    )


def benchmark_page(
    benchmark: Benchmark, predictions: Mapping[str, Predictions], references: Sequence[Doc]
) -> Page:
    """Make the page of a benchmark.

    predictions, references: as in `comparison_page`; empty without gold.
    """
    panels = benchmark_panels(benchmark)
    return Page(
        title=benchmark.title or "Benchmark of pipelines",
        lead=f"{count(len(benchmark.rows), 'pipeline')} on {benchmark.texts}: "
        f"{count(benchmark.n_texts, 'text')}, {benchmark.n_words:,} spaCy tokens. "
        f"{benchmark.date[:10]}.",
        blocks=[
            Warnings(benchmark.verdicts),
            *benchmark_table.make_tables(benchmark),
            Figures("Accuracy against speed", panels.draw_each(), _SPEED_NOTE)
            if panels.scores
            else Figures("Speed by batch size", panels.draw_each()),
            *_reliability(benchmark.rows),
            *_confusions({row.name: row.scores for row in benchmark.rows}, predictions, references),
            Prose("How this was measured", benchmark_table.describe(benchmark)),
            Commands([benchmark.command]),
        ],
    )


def _reliability(rows: Sequence[ComparedPipeline | BenchmarkedPipeline]) -> list[Figures]:
    """Draw the reliability of each pipe, of all pipelines that have it."""
    pipes: dict[str, dict[str, Reliability]] = {}
    for row in rows:
        for pipe, found in row.reliability.items():
            pipes.setdefault(pipe, {})[row.name] = found
    return make_figures(pipes)


def _differences(
    comparison: Comparison, predictions: Mapping[str, Predictions], references: Sequence[Doc]
) -> list[Block]:
    """The documents on which the teacher and each other pipeline differ most."""
    rows = {row.name: row for row in comparison.rows}
    if comparison.teacher is None:
        return []
    teacher = rows.pop(comparison.teacher)
    groups: list[Block] = []
    for row in rows.values():
        names = teacher.name, row.name
        annotations = [
            annotation
            for key, annotation in ANNOTATIONS.items()
            if key in teacher.scores and key in row.scores
        ]
        differences = find_most_different(
            predictions[teacher.name], predictions[row.name], annotations
        )
        shown = differences.documents
        note = (
            f"{len(shown):,} of {count(differences.n_documents, 'document')} in which they "
            f"differ. A document counts by its share of all differences in "
            f"{', '.join(annotation.name for annotation in annotations)}. A frame marks an entity "
            f"that only one of them finds, or with another label. Where the entities are the "
            f"same, the text shows the tags that differ."
        )
        groups.append(
            Group(
                f"Where {teacher.name} and {row.name} differ most",
                [
                    show_side_by_side(
                        each,
                        references[each.index],
                        names,
                        predictions[teacher.name].categories,
                    )
                    for each in shown
                ],
                note + _first_seeds(teacher, row),
                is_open=not groups,
            )
        )
    return groups


def _first_seeds(*rows: ComparedPipeline) -> str:
    names = [row.name for row in rows if len(row.pipelines) > 1]
    return f" Of {' and '.join(names)}, it is the first seed." if names else ""


def _confusions(
    scores: Mapping[str, Mapping[str, object]],
    predictions: Mapping[str, Predictions],
    references: Sequence[Doc],
) -> list[Block]:
    """Confusions of each task by pipeline.

    scores: `Column.key`s of each pipeline. What has no score has no confusions either.
    """
    by_task: dict[str, dict[str, Confusion]] = {}
    for name, predicted in predictions.items():
        categories = predicted.exclusive_categories
        for task, confusion in count_confusions(predicted.examples(references), categories).items():
            keys = [column.key for column in COLUMNS if column.is_task and column.counts == task]
            if confusion and all(key in scores[name] for key in keys):
                by_task.setdefault(task, {})[name] = confusion
    return [
        Group(
            f"Confusions of {_CONFUSIONS[task]}",
            [make_matrix(name, confusion) for name, confusion in confusions.items()],
            "Rows are the annotation of the test set, columns are predictions."
            + (
                " An entity is right if its boundaries and its type are. `none` stands for an "
                "entity that is missing on one side."
                if task == "ents"
                else ""
            ),
            is_open=i == 0,
        )
        for i, (task, confusions) in enumerate(by_task.items())
    ]
