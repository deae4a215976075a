"""Split a file in SQuAD's format by article, so that no paragraph of one part is like another's.

    python -m benchmarks.squad.split xquad.en.json OUT --train 36 --dev 6

OUT gets train.json, dev.json and test.json; the last articles are the test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from wasabi import msg


def main(
    source: Annotated[Path, typer.Argument(help="File in SQuAD's format.")],
    output: Annotated[Path, typer.Argument(help="Directory to write.")],
    train: Annotated[int, typer.Option("--train", help="Articles to train on.")],
    dev: Annotated[int, typer.Option("--dev", help="Articles to choose the best step on.")],
) -> None:
    """Split a file in SQuAD's format by article."""
    articles = read_articles(source)
    if train + dev >= len(articles):
        raise typer.BadParameter(f"{source} has {len(articles)} articles: none is left for a test.")
    bounds = {"train": (0, train), "dev": (train, train + dev), "test": (train + dev, None)}
    for name, (begin, end) in bounds.items():
        write_articles(articles[begin:end], output / f"{name}.json")
    msg.good(f"Wrote {output}")


def read_articles(path: Path) -> list[Any]:
    """Read the articles of a file in SQuAD's format."""
    articles: list[Any] = json.loads(path.read_text(encoding="utf8"))["data"]
    return articles


def write_articles(articles: list[Any], path: Path) -> None:
    """Write articles as a file in SQuAD's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"data": articles}), encoding="utf8")


if __name__ == "__main__":
    typer.run(main)
