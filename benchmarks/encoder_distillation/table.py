"""Make the table of the rows' scores and gains.

    python -m benchmarks.encoder_distillation.table OUT TEST.spacy \\
        --output benchmarks/encoder_distillation/results

OUT is the directory of `benchmarks.encoder_distillation.rows`. Unfinished rows are left out. Scores
are kept in OUT/scores, so that the table can be made again when another row is finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import typer
from thinc.api import Config

from benchmarks.common.commands import finished_seeds
from benchmarks.common.comparison import TASKS, ComparedRow, RowGain, ScoredRow, compare
from benchmarks.common.options import Output, RowsDirectory, Stem, Test
from benchmarks.common.results import Part, report_results, timestamp
from benchmarks.common.score_tables import cell, first_cells, make_gain_table, percent
from benchmarks.encoder_distillation.rows import ROWS, score
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.report import bootstrap
from spacy_distil.report.layout import MISSING, count
from spacy_distil.tables import Table
from spacy_distil.text.documents import check_test_set

STEM = "encoder_distillation"
# The scores in the table. The JSON file has all of them.
SHOWN = ("pos_acc", "ents_f", "cats_macro_f", "cats_micro_r")
COLUMNS = [column for column in TASKS if column.key in SHOWN]


@dataclass(frozen=True)
class DistillationRun:
    """Budget and accuracy of a distillation run.

    steps: number of optimizer steps.
    pieces: number of pieces of text in all steps.
    minutes: duration without evaluations.
    accuracy: of the masked-LM head at held-out pieces, from 0 to 1; `None` without a head.
    """

    steps: int
    pieces: int
    minutes: float
    accuracy: float | None


def read_run(directory: Path | None) -> DistillationRun | None:
    """Read the run that wrote an encoder's directory. RETURNS: `None` without a finished run."""
    if directory is None or not (directory / "distil.json").is_file():
        return None
    results = json.loads((directory / "distil.json").read_text(encoding="utf8"))
    if not results["finished"]:
        return None
    config = Config().from_disk(directory / "distil.cfg", interpolate=False)
    # All blocks are full, and all steps have the same number of blocks.
    pieces_a_step = config["training"]["batch_size"] * config["corpus"]["block_size"]
    lines = (directory / "log.jsonl").read_text(encoding="utf8").splitlines()
    seconds, before = 0.0, 0
    for record in map(json.loads, lines):
        if record["kind"] == "train":
            pieces = (record["step"] - before) * pieces_a_step
            seconds += pieces / record["pieces_per_second"]
            before = record["step"]
    return DistillationRun(
        steps=results["steps"],
        pieces=results["steps"] * pieces_a_step,
        minutes=seconds / 60,
        accuracy=results["scores"].get("student_accuracy"),
    )


def collect(output: Path, test: Path) -> tuple[list[ScoredRow], dict[str, list[DistillationRun]]]:
    """Score all finished rows. RETURNS: the rows, and their distillation runs by row."""
    scored, runs = [], {}
    for row in ROWS.values():
        pipelines = finished_seeds(output / row.name)
        if not pipelines:
            continue
        paths = [str(path) for path in pipelines.values()]
        scores = [score(output, row, seed, test) for seed in pipelines]
        teacher = "" if row.name == "teacher" else "teacher"
        scored.append(ScoredRow(row.name, row.title, paths, scores, teacher, row.before))
        all_runs = (read_run(row.encoder(output, seed)) for seed in pipelines)
        runs[row.name] = [run for run in all_runs if run is not None]
    if not scored:
        raise ConfigError(f"{output}: no finished row. Rows: {', '.join(ROWS)}")
    return scored, runs


def make_tables(
    rows: Sequence[ComparedRow],
    gains: Sequence[RowGain],
    runs: Mapping[str, Sequence[DistillationRun]],
) -> list[Table]:
    headings = [column.title for column in COLUMNS]
    header = ["row", "seeds", "parameters", *headings, "masked LM acc", "pieces", "steps", "min"]
    tables = [Table("Scores", header, [_score_cells(row, runs[row.name]) for row in rows])]
    return [*tables, make_gain_table(gains, COLUMNS)] if gains else tables


def _score_cells(row: ComparedRow, runs: Sequence[DistillationRun]) -> list[str]:
    cells = first_cells(row)
    for column in COLUMNS:
        figure = row.scores.get(column.key)
        cells.append(cell(figure, column, lambda f, decimals: percent(f.mean, f.std, decimals)))
    accuracies = [run.accuracy for run in runs if run.accuracy is not None]
    spread = stdev(accuracies) if len(accuracies) > 1 else None
    cells.append(percent(mean(accuracies), spread, 1) if accuracies else MISSING)
    if not runs:
        return [*cells, MISSING, MISSING, MISSING]
    minutes = mean(run.minutes for run in runs)
    return [*cells, f"{runs[0].pieces / 1e6:.2f} M", f"{runs[0].steps:,}", f"{minutes:,.0f}"]


def describe(rows: Sequence[ScoredRow]) -> str:
    """Describe how the scores were measured."""
    scores = rows[0].scores[0]
    seeds = max(len(row.pipelines) for row in rows)
    spread = "; ± is their standard deviation" * (seeds > 1)
    return (
        f"Test set: {scores.n_docs:,} documents, {scores.n_words:,} spaCy tokens. Scores in %, "
        f"means over up to {count(seeds, 'seed')}{spread}. Each pipeline was trained in the same "
        "way on the row's encoder. Masked LM: share of masked pieces of held-out text that the "
        "student's head predicts. Pieces, steps and minutes count the distillation. In the row "
        "of the adapted teacher they count its adaptation, which the rows below it need "
        f"too. Brackets hold the {bootstrap.LEVEL:.0%} interval of a paired bootstrap over the "
        f"test documents ({bootstrap.RESAMPLES:,} resamples): it says how far the test set's size "
        "makes a number move, not how far another seed would."
    )


def main(
    rows: RowsDirectory,
    test: Test,
    output: Output,
    stem: Stem = STEM,
) -> None:
    """Score all finished rows, print the tables and save them."""
    with friendly_errors():
        date = timestamp()
        check_test_set(test)
        scored, runs = collect(rows, test)
        compared, gains = compare(scored)
        data: dict[str, Any] = {
            "test": test.name,
            "resamples": bootstrap.RESAMPLES,
            "level": bootstrap.LEVEL,
            "recipes": {row.name: asdict(ROWS[row.name]) for row in compared},
            "lines": [asdict(row) for row in compared],
            "runs": {name: [asdict(run) for run in of_row] for name, of_row in runs.items()},
            "steps": [asdict(gain) for gain in gains],
        }
        parts: list[Part] = [*make_tables(compared, gains, runs), describe(scored)]
        report_results(parts, data, output=output, stem=stem, date=date)


if __name__ == "__main__":
    typer.run(main)
