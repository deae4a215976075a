"""A published spaCy pipeline against a student that it has taught.

    python -m benchmarks.any_model.published TEACHER STUDENT HELD_OUT.spacy --gold test.spacy \\
        --output DIR

Agreement with the teacher is scored on text that the student has not seen, annotated by the teacher
(`spacy distil annotate`). A column tells how far the teacher agrees with itself on the same text in
lower case, which is all that a student on an uncased encoder sees. Words/s of both are measured
from raw text on one core, as they are, and without their parsers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from spacy.language import Language
from spacy.tokens import Doc

from benchmarks.any_model.timing import limit_threads, make_table, measure
from benchmarks.common.options import Limit, OptionalOutput, Repeats, Stem
from benchmarks.common.results import Part, report_results, timestamp
from spacy_distil.errors import friendly_errors
from spacy_distil.pipelines import load_pipeline
from spacy_distil.tables import Table
from spacy_distil.text.documents import read_examples

# spaCy's names of the scores, and ours.
SCORES = {
    "tag_acc": "fine-grained tag",
    "pos_acc": "UPOS",
    "morph_acc": "morphology",
    "lemma_acc": "lemma",
    "dep_uas": "UAS",
    "dep_las": "LAS",
    "sents_f": "sentence F",
    "ents_f": "entity F",
}
# Each pipeline is measured at the better of these.
BATCH_SIZES = (64, 256)


def score(nlp: Language, docs: Path, *, lower_case: bool = False) -> dict[str, float]:
    """Score a pipeline on raw text. RETURNS: percent, by the name of the score.

    lower_case: whether it gets the tokens of the annotation, in lower case.
    """
    examples = list(read_examples(nlp, docs))
    for example in examples if lower_case else ():
        tokens = list(example.reference)
        words, spaces = [t.lower_ for t in tokens], [bool(t.whitespace_) for t in tokens]
        example.predicted = Doc(nlp.vocab, words, spaces)
    scores = nlp.evaluate(examples)
    return {key: 100 * scores[key] for key in SCORES if scores.get(key) is not None}


def score_table(title: str, columns: dict[str, dict[str, float]]) -> Table:
    """Make a table of scores. columns: scores by the name of the pipeline."""
    keys = [key for key in SCORES if any(key in each for each in columns.values())]
    rows = [
        [SCORES[key], *(f"{each[key]:.1f}" if key in each else "" for each in columns.values())]
        for key in keys
    ]
    return Table(title, ["", *columns], rows)


def measure_speed(
    pipelines: dict[str, Language], texts: Sequence[str], *, repeats: int
) -> tuple[list[Part], dict[str, Any]]:
    """Measure words/s with and without the parser, each pipeline at its best batch size."""
    parts: list[Part] = []
    data: dict[str, Any] = {}
    teacher = pipelines["teacher"]
    n_words = sum(len(teacher.make_doc(text)) for text in texts)
    titles: dict[str, list[str]] = {"All pipes": []}
    if "parser" in teacher.pipe_names:
        titles["Without the parser"] = ["parser"]
    for title, disabled in titles.items():
        sides: dict[str, Any] = {}
        for name, nlp in pipelines.items():
            names = [pipe for pipe in disabled if pipe in nlp.pipe_names]
            for size in BATCH_SIZES:
                sides[f"{name}, batches of {size}"] = partial(_run, nlp, names, size)
        rounds = measure(sides, texts, n_words, repeats=repeats)
        ours = [side for side in sides if side.startswith("teacher")]
        best = max(ours, key=lambda side: rounds.words_per_second(side).median)
        parts.append(make_table(f"{title}, 1 core", rounds, best))
        data[title] = rounds.seconds
    return parts, {"n_words": n_words, "seconds": data}


def _run(nlp: Language, disabled: list[str], batch_size: int, texts: Sequence[str]) -> None:
    with nlp.select_pipes(disable=disabled):
        for _ in nlp.pipe(texts, batch_size=batch_size):
            pass


def main(
    teacher: Annotated[str, typer.Argument(help="Published pipeline: directory or package")],
    student: Annotated[Path, typer.Argument(help="The student, in int8")],
    held_out: Annotated[
        Path, typer.Argument(metavar="HELD_OUT.spacy", help="Documents annotated by the teacher")
    ],
    gold: Annotated[
        Path | None, typer.Option(help="Documents annotated by people, to score UPOS on")
    ] = None,
    limit: Limit = 400,
    repeats: Repeats = 5,
    output: OptionalOutput = None,
    stem: Stem = "published",
) -> None:
    """Measure agreement and words/s, print the tables and save them."""
    limit_threads(1)
    date = timestamp()
    with friendly_errors():
        pipelines = {"teacher": load_pipeline(teacher), "student, int8": load_pipeline(student)}
        agreement = score(pipelines["student, int8"], held_out)
        lower = score(pipelines["teacher"], held_out, lower_case=True)
        columns = {"student, int8": agreement, "teacher, text in lower case": lower}
        parts: list[Part] = [score_table("Agreement with the teacher", columns)]
        data: dict[str, Any] = {"agreement": agreement, "lower_case": lower}
        if gold is not None:
            upos = {
                name: {"pos_acc": score(nlp, gold)["pos_acc"]} for name, nlp in pipelines.items()
            }
            parts.append(score_table(f"Against {gold.name}", upos))
            data["gold"] = upos
        texts = [example.text for example in read_examples(pipelines["teacher"], held_out)]
        tables, speed = measure_speed(pipelines, texts[: limit or None], repeats=repeats)
    about = (
        f"From raw text; {speed['n_words']:,} spaCy tokens for the speed; median and range of "
        f"{repeats} rounds in turns, on one core."
    )
    parts += [*tables, about]
    report_results(parts, {**data, **speed}, output=output, stem=stem, date=date)


if __name__ == "__main__":
    typer.run(main)
