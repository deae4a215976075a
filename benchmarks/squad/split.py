"""Split a file in SQuAD's format by article, so that no paragraph of one part is like another's.

    python -m benchmarks.squad.split xquad.en.json OUT --train 36 --dev 6

OUT gets train.json, dev.json and test.json; the last articles are the test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg


def main(
    source: Annotated[Path, typer.Argument(help="File in SQuAD's format.")],
    output: Annotated[Path, typer.Argument(help="Directory to write.")],
    train: Annotated[int, typer.Option("--train", help="Articles to train on.")],
    dev: Annotated[int, typer.Option("--dev", help="Articles to choose the best step on.")],
) -> None:
    """Split a file in SQuAD's format by article."""
    articles = json.loads(source.read_text(encoding="utf8"))["data"]
    if train + dev >= len(articles):
        raise typer.BadParameter(f"{source} has {len(articles)} articles: none is left for a test.")
    output.mkdir(parents=True, exist_ok=True)
    bounds = {"train": (0, train), "dev": (train, train + dev), "test": (train + dev, None)}
    for name, (begin, end) in bounds.items():
        data = {"data": articles[begin:end]}
        (output / f"{name}.json").write_text(json.dumps(data), encoding="utf8")
    msg.good(f"Wrote {output}")


if __name__ == "__main__":
    typer.run(main)
