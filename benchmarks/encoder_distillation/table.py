"""Scores of the rows, and what each step gave.

    python -m benchmarks.encoder_distillation.table OUT TEST.spacy --output benchmarks/ewt

OUT is what `benchmarks.encoder_distillation.rows` made; rows that are not finished are left out. What was
scored once is kept in OUT/scores, so that the table can be made again when a row comes in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer
from thinc.api import Config

from benchmarks.encoder_distillation.rows import ROWS, Row, score
from benchmarks.common.results import save_results
from benchmarks.common.comparison import TASKS, Line, Step, Subject, compare
from benchmarks.pipeline_distillation.table import MINUS, points
from scripts.train import FINISHED
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.report import bootstrap
from spacy_distil.report.layout import MISSING, count
from spacy_distil.tables import Table
from spacy_distil.text.documents import check_test_set

STEM = "distillation"
# The scores that are shown; the JSON file has all.
SHOWN = ("pos_acc", "ents_f", "cats_macro_f", "cats_micro_r")
COLUMNS = [column for column in TASKS if column.key in SHOWN]


@dataclass(frozen=True)
class Run:
    """What a distillation run took and came to.

    steps, pieces: optimizer steps, and pieces of text in all of them.
    minutes: that it trained, without evaluations.
    accuracy: of its masked-LM head at held-out pieces (0 to 1); `None` without a head.
    """

    steps: int
    pieces: int
    minutes: float
    accuracy: float | None


def read_run(directory: Path | None) -> Run | None:
    """The run that wrote an encoder's directory; `None` where there was none, or it is not done."""
    if directory is None or not (directory / "distil.json").is_file():
        return None
    results = json.loads((directory / "distil.json").read_text(encoding="utf8"))
    if not results["finished"]:
        return None
    config = Config().from_disk(directory / "distil.cfg", interpolate=False)
    # Blocks are packed full, and all steps have as many.
    pieces_a_step = config["training"]["batch_size"] * config["corpus"]["block_size"]
    lines = (directory / "log.jsonl").read_text(encoding="utf8").splitlines()
    seconds, before = 0.0, 0
    for record in map(json.loads, lines):
        if record["kind"] == "train":
            pieces = (record["step"] - before) * pieces_a_step
            seconds += pieces / record["pieces_per_second"]
            before = record["step"]
    return Run(
        steps=results["steps"],
        pieces=results["steps"] * pieces_a_step,
        minutes=seconds / 60,
        accuracy=results["scores"].get("student_accuracy"),
    )


def finished_seeds(output: Path, row: Row) -> list[int]:
    """Seeds of a row whose pipelines are trained to their end."""
    return sorted(
        int(match[1])
        for path in (output / row.name).glob("seed-*")
        if (match := re.fullmatch(r"seed-(\d+)", path.name)) and (path / FINISHED).is_file()
    )


def collect(output: Path, test: Path) -> tuple[list[Subject], dict[str, list[Run]]]:
    """All finished rows, scored, and the runs that made their encoders, by row."""
    subjects, runs = [], {}
    for row in ROWS.values():
        seeds = finished_seeds(output, row)
        if not seeds:
            continue
        paths = [str(output / row.name / f"seed-{seed}" / "model-best") for seed in seeds]
        scores = [score(output, row, seed, test) for seed in seeds]
        teacher = "" if row.name == "teacher" else "teacher"
        subjects.append(Subject(row.name, row.title, paths, scores, teacher, row.before))
        found = (read_run(row.encoder(output, seed)) for seed in seeds)
        runs[row.name] = [run for run in found if run is not None]
    if not subjects:
        raise ConfigError(f"{output}: no finished row. Rows: {', '.join(ROWS)}")
    return subjects, runs


def make_tables(
    lines: Sequence[Line], steps: Sequence[Step], runs: dict[str, list[Run]]
) -> list[Table]:
    headings = [column.title for column in COLUMNS]
    tables = [
        Table(
            "Scores",
            ["row", "seeds", "parameters", *headings, "masked LM acc", "pieces", "steps", "min"],
            [_scores(line, runs[line.name]) for line in lines],
        )
    ]
    if steps:
        tables.append(
            Table(
                "What a step gave: score less that of the row before, points",
                ["rows", *headings],
                [
                    [
                        f"{step.row} {MINUS} {step.before}",
                        *(
                            points(step.differences[c.key], c.decimals)
                            if c.key in step.differences
                            else MISSING
                            for c in COLUMNS
                        ),
                    ]
                    for step in steps
                ],
            )
        )
    return tables


def _scores(line: Line, runs: Sequence[Run]) -> list[str]:
    name = line.name if line.name == line.title else f"{line.name}: {line.title}"
    cells = [name, str(len(line.pipelines)), f"{line.n_parameters / 1e6:,.1f} M"]
    for column in COLUMNS:
        figure = line.scores.get(column.key)
        cells.append(percent(figure.seeds if figure else [], column.decimals))
    cells.append(percent([run.accuracy for run in runs if run.accuracy is not None], 1))
    if not runs:
        return [*cells, MISSING, MISSING, MISSING]
    minutes = mean(run.minutes for run in runs)
    return [*cells, f"{runs[0].pieces / 1e6:.2f} M", f"{runs[0].steps:,}", f"{minutes:,.0f}"]


def percent(values: Sequence[float], decimals: int) -> str:
    """Mean of shares ± standard deviation over seeds, in %."""
    if not values:
        return MISSING
    spread = f" ± {stdev(values) * 100:.{decimals}f}" if len(values) > 1 else ""
    return f"{mean(values) * 100:.{decimals}f}{spread}"


def describe(subjects: Sequence[Subject], seeds: int) -> str:
    """seeds: most of a row."""
    scores = subjects[0].scores[0]
    spread = "; ± is their standard deviation" * (seeds > 1)
    return (
        f"Test set: {scores.n_docs:,} documents, {scores.n_words:,} spaCy tokens. Scores in %, "
        f"means over up to {count(seeds, 'seed')}{spread}. Each pipeline was trained in the same "
        "way on the row's encoder. Masked LM: share of masked pieces of held-out text that the "
        "student's head guesses. Pieces, steps and minutes are those of distillation (of the "
        "adapted teacher, of its adaptation, which the rows that learn from it have behind them "
        f"too). Brackets hold the {bootstrap.LEVEL:.0%} interval of a paired bootstrap over the "
        f"test documents ({bootstrap.RESAMPLES:,} resamples): it says how far the test set's size "
        "makes a number move, not how far another seed would."
    )


def main(
    rows: Annotated[Path, typer.Argument(metavar="OUT", help="Directory of all rows")],
    test: Annotated[Path, typer.Argument(metavar="TEST.spacy", help="Test documents")],
    output: Annotated[Path, typer.Option(help="Directory for the tables")],
    stem: Annotated[str, typer.Option(help="Name of the .md and the .json file")] = STEM,
) -> None:
    """Score all finished rows, print the tables and save them."""
    with friendly_errors():
        check_test_set(test)
        subjects, runs = collect(rows, test)
        lines, steps = compare(subjects)
        tables = make_tables(lines, steps, runs)
        about = describe(subjects, max(len(subject.pipelines) for subject in subjects))
        data: dict[str, Any] = {
            "test": test.name,
            "resamples": bootstrap.RESAMPLES,
            "level": bootstrap.LEVEL,
            "recipes": {line.name: asdict(ROWS[line.name]) for line in lines},
            "lines": [asdict(line) for line in lines],
            "runs": {name: [asdict(run) for run in some] for name, some in runs.items()},
            "steps": [asdict(step) for step in steps],
        }
        for table in tables:
            print(table.to_text())
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        parts = [*(table.to_markdown() for table in tables), about]
        save_results(output, stem, data, parts, date=date)


if __name__ == "__main__":
    typer.run(main)
