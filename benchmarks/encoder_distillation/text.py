"""Sample text to distil an encoder on, and held-out text of the same sources.

    python -m benchmarks.encoder_distillation.text DIR OUT --words 800000 --held-out test.spacy

DIR has the plain-text files that `benchmarks/common/sampling.py` names. Writes `OUT/train.jsonl`
and `OUT/dev.jsonl`, documents in random order. The same files and seed give the same sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from benchmarks.common.documents import write_jsonl
from benchmarks.common.options import Seed
from benchmarks.common.sampling import HeldOut, count_words, sample, shuffled
from spacy_distil.errors import friendly_errors

TRAIN, DEV = "train.jsonl", "dev.jsonl"


def split(documents: Sequence[str], n_words: int) -> tuple[list[str], list[str]]:
    """Split documents. RETURNS: the first ones with at least `n_words` in total, and the rest."""
    taken = 0
    for place, document in enumerate(documents):
        if taken >= n_words:
            return list(documents[:place]), list(documents[place:])
        taken += len(document.split())
    return list(documents), []


def main(
    directory: Annotated[Path, typer.Argument(help="Directory of plain-text files")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Directory for both files")],
    words: Annotated[int, typer.Option(help="Number of words to distil on", min=1)] = 800_000,
    dev_words: Annotated[int, typer.Option(help="Number of held-out words", min=1)] = 12_000,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(help=".spacy file whose sentences must not be in the text", exists=True),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Sample text to distil on, and to measure on."""
    with friendly_errors():
        chosen = sample(
            directory, words + dev_words, held_out=HeldOut.read(held_out or ()), seed=seed
        )
        dev, train = split(shuffled(chosen, seed), dev_words)
        for name, part in ((TRAIN, train), (DEV, dev)):
            write_jsonl(output / name, ({"text": text} for text in part))
            msg.good(f"{output / name}: {len(part):,} documents, {count_words(part):,} words")


if __name__ == "__main__":
    typer.run(main)
