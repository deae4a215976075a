"""BANKING77, intents of short customer questions, as files that the project's `corpus` reads.

    python -m benchmarks.pipeline_distillation.banking77 DIR OUT

DIR has the `train.csv` and `test.csv` of the dataset (text, category). Writes `train.jsonl`,
`dev.jsonl` and `test.jsonl`; dev is a tenth of each intent's training questions.
"""

from __future__ import annotations

import csv
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from spacy_distil.errors import CorpusError, friendly_errors

DEV_SHARE = 0.1

# (question, intent)
Rows = list[tuple[str, str]]


def read_rows(path: Path) -> Rows:
    if not path.is_file():
        raise CorpusError(f"No such file: {path}")
    with path.open(encoding="utf8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != ["text", "category"]:
            raise CorpusError(f"{path}: columns {reader.fieldnames}, expected text and category")
        # Some questions have line breaks in them, which would be tokens.
        return [(" ".join(row["text"].split()), row["category"]) for row in reader]


def split_dev(rows: Rows, *, seed: int = 0) -> tuple[Rows, Rows]:
    """Rows to train on, and a tenth of each intent, at least one, for development."""
    by_intent: dict[str, list[int]] = defaultdict(list)
    for index, (_, intent) in enumerate(rows):
        by_intent[intent].append(index)
    rng = random.Random(seed)
    dev: set[int] = set()
    for intent in sorted(by_intent):
        indices = by_intent[intent]
        dev.update(rng.sample(indices, max(1, round(len(indices) * DEV_SHARE))))
    return (
        [row for index, row in enumerate(rows) if index not in dev],
        [row for index, row in enumerate(rows) if index in dev],
    )


def main(
    directory: Annotated[Path, typer.Argument(help="Directory with train.csv and test.csv")],
    output: Annotated[Path, typer.Argument(help="Where the .jsonl files go")],
    seed: Annotated[int, typer.Option(help="Of the choice of the development questions")] = 0,
) -> None:
    """Convert BANKING77."""
    with friendly_errors():
        train, dev = split_dev(read_rows(directory / "train.csv"), seed=seed)
        output.mkdir(parents=True, exist_ok=True)
        for name, rows in (
            ("train", train),
            ("dev", dev),
            ("test", read_rows(directory / "test.csv")),
        ):
            with (output / f"{name}.jsonl").open("w", encoding="utf8", newline="\n") as file:
                for text, label in rows:
                    record = {"text": text, "label": label}
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
            msg.good(f"{output / name}.jsonl: {len(rows):,} questions")


if __name__ == "__main__":
    typer.run(main)
