"""A search as tables, a plot and a page."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from spacy_distil.fitting.candidates import CANDIDATES
from spacy_distil.fitting.costs import ROUNDS, describe_limit
from spacy_distil.fitting.results import Fit, Student
from spacy_distil.report.layout import MISSING, count, join_markdown, join_text, measured_on
from spacy_distil.report.page import Commands, Figures, Page, Prose, write_page
from spacy_distil.report.plot import Point, make_trade_off_figure
from spacy_distil.report.speed import Spread
from spacy_distil.runs.files import write_text
from spacy_distil.tables import Table

STEM = "fit"


def write_report(fit: Fit) -> None:
    """Write fit.json, fit.md and fit.html to the directory of the search."""
    write_text(fit.output / f"{STEM}.json", json.dumps(fit.to_dict(), indent=2) + "\n")
    markdown = join_markdown(make_tables(fit), describe(fit), title=f"Students of {fit.teacher}")
    write_text(fit.output / f"{STEM}.md", markdown)
    page = Page(
        title="A student for a budget",
        lead=f"{fit.best} ({fit.students[fit.best].fate}). Budget: {'; '.join(budget(fit))}.",
        blocks=[
            Figures(
                "Score against speed",
                {"Score against speed": draw(fit)},
                "A line joins the students that no other one beats in score and speed at once. "
                "The scores of students that were dropped are from an earlier step.",
            ),
            *make_tables(fit),
            Prose("How they were found", describe(fit)),
            Commands([fit.command]),
            Commands(
                list(commands(fit).values()), title="Commands that train the others to the end"
            ),
        ],
    )
    write_page(page, fit.output / f"{STEM}.html")


def to_text(fit: Fit) -> str:
    """Write the table for the terminal."""
    return join_text(make_tables(fit))


def make_tables(fit: Fit) -> list[Table]:
    """Make the table of all students, the fastest last, after the ones that were not timed."""
    ordered = sorted(
        ((name, each) for name, each in fit.students.items() if each.is_tried),
        key=lambda item: item[1].known_costs().words_per_second or 0.0,
    )
    header = ["student", "words/s", f"p{fit.settings.percentile}, ms", "MB on disk"]
    header += ["MB of memory", "step", "score", "% of the teacher's", ""]
    return [Table("Students", header, [_row(fit, name, each) for name, each in ordered])]


def _row(fit: Fit, name: str, student: Student) -> list[str]:
    costs = student.known_costs()
    score = kept = MISSING
    if student.history:
        score = f"{student.score:.4f}"
        kept = f"{100 * student.score / fit.teacher_score:.1f}" if fit.teacher_score else MISSING
    return [
        name,
        _format(costs.words_per_second, ",.0f"),
        _format(costs.get("latency_ms", fit.settings.percentile), ".2f"),
        _format(costs.size_mb, ".1f"),
        _format(costs.memory_mb, ",.0f"),
        f"{student.step:,}" if student.history else MISSING,
        score,
        kept,
        student.fate,
    ]


def _format(value: float | None, form: str) -> str:
    return MISSING if value is None else f"{value:{form}}"


def budget(fit: Fit) -> list[str]:
    """Say what the budget was, in a line for each limit."""
    settings = fit.settings
    lines = [describe_limit(name, limit) for name, limit in settings.limits.items()]
    if settings.min_retention is not None:
        lines.append(f"at least {settings.min_retention:.1%} of the teacher's score")
    return lines


def describe(fit: Fit) -> str:
    """Say how the students were measured, in a footnote."""
    settings = fit.settings
    teacher = f" The teacher's score is {fit.teacher_score:.4f}." if fit.teacher_score else ""
    return (
        f"Budget: {'; '.join(budget(fit))}. Costs were measured on quantized students "
        f"before their training, and on the chosen one again after it: medians of {ROUNDS} "
        f"interleaved rounds on {count(settings.cores, 'core')}, in batches of "
        f"{settings.batch_size} documents, "
        f"and latencies of one text at a time. Scores are weighted as [training.score_weights] "
        f"says, on the development documents, in float32.{teacher} A whole training has "
        f"{fit.steps:,} steps.\n\n{measured_on(fit.machine, fit.date)}"
    )


def draw(fit: Fit) -> Any:
    """Plot score against speed. RETURNS: a figure of matplotlib."""
    points = []
    for name, student in fit.students.items():
        if student.history:
            rate = 1 / student.known_costs().seconds_per_word()
            points.append(Point(name, Spread(rate, rate, rate), 100 * student.score))
    return make_trade_off_figure(points)


def commands(fit: Fit) -> dict[str, str]:
    """Return the command that trains each other student to the end, by the name of its training.

    Students that were never trained have none: they have no config yet.
    """
    found = {}
    for student in fit.students.values():
        place = Path(fit.output) / CANDIDATES / student.candidate.training
        if 0 < student.step < fit.steps:
            words = ["python", "-m", "spacy", "distil", "pipeline", fit.teacher]
            words += [str(place / "config.cfg"), "--output", str(place / "run"), "--resume"]
            found[student.candidate.training] = shlex.join(words)
    return found
