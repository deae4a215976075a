"""Sample unlabelled English, French or German text to distil a pipeline on.

    python -m benchmarks.pipeline_distillation.text DIR OUT.jsonl --words 300000 \\
        --held-out dev.spacy

DIR has the plain-text files that `benchmarks/common/sampling.py` names. That module also says how
the documents are chosen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from benchmarks.common.documents import write_jsonl
from benchmarks.common.options import Seed
from benchmarks.common.sampling import SOURCES_OF, HeldOut, count_words, sample, shuffled
from spacy_distil.errors import ConfigError, friendly_errors


def main(
    directory: Annotated[Path, typer.Argument(help="Directory of plain-text files")],
    output: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="File to write")],
    words: Annotated[int, typer.Option(help="Number of words in total", min=1)] = 300_000,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(help=".spacy file whose sentences must not be in the sample", exists=True),
    ] = None,
    lang: Annotated[str, typer.Option(help=f"Language: {', '.join(SOURCES_OF)}")] = "en",
    seed: Seed = 0,
) -> None:
    """Write a sample of unlabelled text and print the number of words of each source."""
    with friendly_errors():
        if lang not in SOURCES_OF:
            raise ConfigError(f"--lang {lang}: expected one of {', '.join(SOURCES_OF)}.")
        chosen = sample(
            directory,
            words,
            held_out=HeldOut.read(held_out or ()),
            seed=seed,
            sources=SOURCES_OF[lang],
        )
        documents = shuffled(chosen, seed)
        write_jsonl(output, ({"text": document} for document in documents))
        rows = [
            (name, f"{len(group):,}", f"{count_words(group):,}") for name, group in chosen.items()
        ]
        header = ("source", "documents", "words")
        footer = ("", f"{len(documents):,}", f"{count_words(documents):,}")
        msg.table(rows, header=header, footer=footer, divider=True, aligns=("l", "r", "r"))
        msg.good(f"Wrote {output}")


if __name__ == "__main__":
    typer.run(main)
