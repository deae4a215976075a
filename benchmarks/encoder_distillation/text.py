"""Text to distil on, and held-out text of the same sources.

    python -m benchmarks.encoder_distillation.text DIR OUT --words 800000 --exclude test.spacy

DIR has the plain-text files that `benchmarks.pipeline_distillation.text` samples: whole paragraphs, nothing
twice. Writes `OUT/train.jsonl` and `OUT/dev.jsonl`, documents in random order; the same files and
seed give the same sample.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from benchmarks.pipeline_distillation.text import HeldOut, read_sentences, sample
from spacy_distil.errors import friendly_errors

TRAIN, DEV = "train.jsonl", "dev.jsonl"


def split(documents: Sequence[str], n_words: int) -> tuple[list[str], list[str]]:
    """The first documents with at least `n_words` words together, and the rest."""
    taken = 0
    for place, document in enumerate(documents):
        if taken >= n_words:
            return list(documents[:place]), list(documents[place:])
        taken += len(document.split())
    return list(documents), []


def main(
    directory: Annotated[Path, typer.Argument(help="Directory of plain-text files")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Directory of both files")],
    words: Annotated[int, typer.Option(help="Words to distil on", min=1)] = 800_000,
    dev_words: Annotated[int, typer.Option(help="Words that are held out", min=1)] = 12_000,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(help=".spacy file whose sentences must not be in the text", exists=True),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice and the order")] = 0,
) -> None:
    """Sample text to distil on, and to measure on."""
    with friendly_errors():
        held_out = HeldOut(read_sentences(exclude or ()))
        chosen = sample(directory, words + dev_words, held_out=held_out, seed=seed)
        documents = [document for group in chosen.values() for document in group]
        random.Random(seed).shuffle(documents)
        dev, train = split(documents, dev_words)
        output.mkdir(parents=True, exist_ok=True)
        for name, part in ((TRAIN, train), (DEV, dev)):
            with (output / name).open("w", encoding="utf8", newline="\n") as file:
                for text in part:
                    file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            n_words = sum(len(text.split()) for text in part)
            msg.good(f"{output / name}: {len(part):,} documents, {n_words:,} words")


if __name__ == "__main__":
    typer.run(main)
