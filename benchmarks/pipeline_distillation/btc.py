"""Convert a section of the Broad Twitter Corpus (Derczynski et al. 2016) to a .spacy file.

    python -m benchmarks.pipeline_distillation.btc h.conll btc.spacy

Its entities have EWT's types, and its texts come from elsewhere: PER, LOC and ORG in tweets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import spacy
import typer
from spacy.tokens import Doc, DocBin
from spacy.vocab import Vocab
from wasabi import msg

from spacy_distil.errors import CorpusError, friendly_errors


def read_tweets(path: Path, vocab: Vocab) -> list[Doc]:
    """Read tweets with their entities, one doc each, with a space after each token.

    path: a word and its tag on each line, and an empty line after each tweet. A few lines have no
        word, and give no token.
    """
    docs = []
    for tweet in path.read_text("utf8").split("\n\n"):
        columns = [line.split("\t") for line in tweet.split("\n") if line.strip()]
        if any(len(column) != 2 for column in columns):
            raise CorpusError(f"{path}: expected word and tag, divided by a tab, not {tweet!r}")
        tokens = [(word, tag) for word, tag in columns if word.strip()]
        if tokens:
            words, tags = zip(*tokens, strict=True)
            docs.append(Doc(vocab, words=list(words), ents=list(tags)))
    return docs


def main(
    path: Annotated[Path, typer.Argument(help="A section of the corpus, such as h.conll")],
    output: Annotated[Path, typer.Argument(help="The .spacy file to write")],
) -> None:
    """Convert a section of the Broad Twitter Corpus."""
    with friendly_errors():
        docs = read_tweets(path, spacy.blank("en").vocab)
        DocBin(docs=docs).to_disk(output)
        n_entities = sum(len(doc.ents) for doc in docs)
        msg.good(f"{output}: {len(docs):,} tweets, {n_entities:,} entities")


if __name__ == "__main__":
    typer.run(main)
