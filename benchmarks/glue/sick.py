"""Write the entailment of SICK (Marelli et al. 2014) in GLUE's format.

    python -m benchmarks.glue.sick SICK_DIR GLUE_DIR/SICK

SICK_DIR has SICK_train.txt, SICK_trial.txt and SICK_test_annotated.txt, which become train.tsv,
dev.tsv and test.tsv.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

FILES = {"SICK_train": "train", "SICK_trial": "dev", "SICK_test_annotated": "test"}


def main(
    source: Annotated[Path, typer.Argument(help="Directory of SICK.")],
    output: Annotated[Path, typer.Argument(help="Directory to write.")],
) -> None:
    """Write the entailment of SICK in GLUE's format."""
    output.mkdir(parents=True, exist_ok=True)
    for old, new in FILES.items():
        with (source / f"{old}.txt").open(encoding="utf8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        with (output / f"{new}.tsv").open("w", encoding="utf8", newline="") as file:
            file.write("index\tsentence1\tsentence2\tlabel\n")
            for row in rows:
                texts = (row["pair_ID"], row["sentence_A"], row["sentence_B"])
                file.write("\t".join([*texts, row["entailment_judgment"].lower()]) + "\n")
    msg.good(f"Wrote {output}")


if __name__ == "__main__":
    typer.run(main)
