"""Convert BANKING77, intents of short customer questions, to files for the project's `corpus`
command.

    python -m benchmarks.pipeline_distillation.banking77 DIR OUT

DIR has the `train.csv` and `test.csv` of the dataset (text, category). Writes `train.jsonl`,
`dev.jsonl` and `test.jsonl`. The dev set is a tenth of each intent's training questions.
"""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from benchmarks.common.documents import write_jsonl
from benchmarks.common.options import Seed
from spacy_distil.errors import CorpusError, friendly_errors

DEV_SHARE = 0.1

# (question, intent)
Questions = list[tuple[str, str]]


def read_questions(path: Path) -> Questions:
    """Read a CSV file of the dataset."""
    if not path.is_file():
        raise CorpusError(f"No such file: {path}")
    with path.open(encoding="utf8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != ["text", "category"]:
            raise CorpusError(f"{path}: columns {reader.fieldnames}, expected text and category")
        # Line breaks in questions would be tokens.
        return [(" ".join(row["text"].split()), row["category"]) for row in reader]


def split_dev(questions: Questions, *, seed: int = 0) -> tuple[Questions, Questions]:
    """Split questions into train and dev. The dev set has at least one question of each intent."""
    by_intent: dict[str, list[int]] = defaultdict(list)
    for index, (_, intent) in enumerate(questions):
        by_intent[intent].append(index)
    rng = random.Random(seed)
    dev: set[int] = set()
    for intent in sorted(by_intent):
        indices = by_intent[intent]
        dev.update(rng.sample(indices, max(1, round(len(indices) * DEV_SHARE))))
    return (
        [question for index, question in enumerate(questions) if index not in dev],
        [question for index, question in enumerate(questions) if index in dev],
    )


def main(
    directory: Annotated[Path, typer.Argument(help="Directory with train.csv and test.csv")],
    output: Annotated[Path, typer.Argument(help="Directory for the .jsonl files")],
    seed: Seed = 0,
) -> None:
    """Convert BANKING77."""
    with friendly_errors():
        train, dev = split_dev(read_questions(directory / "train.csv"), seed=seed)
        test = read_questions(directory / "test.csv")
        for name, questions in (("train", train), ("dev", dev), ("test", test)):
            file = output / f"{name}.jsonl"
            write_jsonl(file, ({"text": text, "label": label} for text, label in questions))
            msg.good(f"{file}: {len(questions):,} questions")


if __name__ == "__main__":
    typer.run(main)
