"""A sample of unlabelled English to teach on.

    python -m benchmarks.pipeline_distillation.text DIR OUT.jsonl --words 300000 --held-out dev.spacy

DIR has plain-text files (`SOURCES`), one paragraph or sentence a line, a blank line between
documents. Half of the words are people's everyday writing, the other half is spread over the rest.
Paragraphs stay whole; neighbours in the same source document are joined to about 100 words, so that
a head sees more than one line of context. Nothing comes in twice, and nothing that stands in the
documents the pipelines are scored on.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import spacy
import typer
from spacy.tokens import DocBin
from wasabi import msg

from scripts.corpus import read_text
from spacy_distil.errors import CorpusError, friendly_errors

# Paragraphs are joined until there are so many words, but not to more than the second number.
ENOUGH_WORDS = 100
MOST_WORDS = 150
# What is shorter is a heading or a cell of a table.
FEWEST_WORDS = 4
# Of a paragraph's characters; less is code, a table or a list of numbers.
LETTERS = 0.7
# Text that shares so many words in a row with a held-out document is a copy of it.
RUN = 8

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")


@dataclass(frozen=True)
class Source:
    """A file of the directory.

    share: of the sample's words.
    sentences: whether its lines are sentences that have nothing to do with their neighbours.
    """

    name: str
    share: float
    sentences: bool = False


SOURCES = (
    Source("common_voice_en_sentences", 1 / 6, sentences=True),
    Source("18f_blog", 1 / 6),
    Source("digitalgov_articles", 1 / 6),
    Source("python_peps", 0.12),
    Source("ethereum_eips", 0.12),
    Source("owasp_cheatsheets", 0.12),
    Source("wikisplit_wikipedia_sentences", 0.12, sentences=True),
    Source("eltec_eng_novels", 0.02),
)


class HeldOut:
    """Sentences that must not be in the sample, by their words alone: no case, no punctuation."""

    def __init__(self, sentences: Iterable[str] = ()) -> None:
        self.sentences: set[tuple[str, ...]] = set()
        self.runs: set[tuple[str, ...]] = set()
        for sentence in sentences:
            words = normalise(sentence)
            if words:
                self.sentences.add(words)
                self.runs.update(runs(words))

    def __contains__(self, paragraph: object) -> bool:
        """Whether a paragraph has one of the sentences, or `RUN` words of one in a row."""
        text = str(paragraph)
        return any(run in self.runs for run in runs(normalise(text))) or any(
            normalise(sentence) in self.sentences for sentence in _SENTENCE_END.split(text)
        )


def normalise(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def runs(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """All stretches of `RUN` words."""
    return (words[start : start + RUN] for start in range(len(words) - RUN + 1))


def read_sentences(paths: Iterable[Path]) -> Iterator[str]:
    """The sentences of annotated documents."""
    vocab = spacy.blank("en").vocab
    for path in paths:
        for doc in DocBin().from_disk(path).get_docs(vocab):
            if doc.has_annotation("SENT_START"):
                yield from (sentence.text for sentence in doc.sents)
            else:
                yield doc.text


def is_prose(paragraph: str) -> bool:
    letters = sum(character.isalpha() or character.isspace() for character in paragraph)
    return len(paragraph.split()) >= FEWEST_WORDS and letters >= LETTERS * len(paragraph)


def join(paragraphs: Iterable[str]) -> Iterator[str]:
    """Neighbours joined by a space, as treebanks join them: a line break would be a token."""
    joined: list[str] = []
    n_words = 0
    for paragraph in paragraphs:
        length = len(paragraph.split())
        if joined and (n_words >= ENOUGH_WORDS or n_words + length > MOST_WORDS):
            yield " ".join(joined)
            joined, n_words = [], 0
        joined.append(paragraph)
        n_words += length
    if joined:
        yield " ".join(joined)


def candidates(
    path: Path, source: Source, held_out: HeldOut, seen: set[tuple[str, ...]]
) -> Iterator[str]:
    """All documents that a source could give.

    seen: words of the paragraphs that were given before; grows.
    """
    for document in read_text(path):
        kept = []
        for paragraph in document:
            text = " ".join(paragraph.split())
            words = normalise(text)
            if words in seen or not is_prose(text) or text in held_out:
                continue
            seen.add(words)
            kept.append(text)
        yield from kept if source.sentences else join(kept)


def sample(
    directory: Path,
    n_words: int,
    *,
    held_out: HeldOut | None = None,
    seed: int = 0,
    sources: Sequence[Source] = SOURCES,
) -> dict[str, list[str]]:
    """Documents by source, about `n_words` in all, in random order."""
    held_out = held_out or HeldOut()
    seen: set[tuple[str, ...]] = set()
    chosen: dict[str, list[str]] = {}
    for source in sources:
        path = directory / f"{source.name}.txt"
        if not path.is_file():
            raise CorpusError(f"No such file: {path}")
        documents = list(candidates(path, source, held_out, seen))
        # Of its own for each source: another share of one leaves the rest as it is.
        random.Random(f"{seed} {source.name}").shuffle(documents)
        left = source.share * n_words
        chosen[source.name] = []
        for document in documents:
            if left <= 0:
                break
            chosen[source.name].append(document)
            left -= len(document.split())
        if left > 0:
            raise CorpusError(
                f"{path}: {left:,.0f} words short of {source.share:.1%} of {n_words:,}. "
                "Ask for fewer --words"
            )
    return chosen


def main(
    directory: Annotated[Path, typer.Argument(help="Directory of plain-text files")],
    output: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Where to write them")],
    words: Annotated[int, typer.Option(help="Words of all documents together", min=1)] = 300_000,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(help=".spacy file whose sentences must not be in the sample", exists=True),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice and the order")] = 0,
) -> None:
    """Write a sample of unlabelled text and print how many words are of which source."""
    with friendly_errors():
        chosen = sample(
            directory, words, held_out=HeldOut(read_sentences(held_out or ())), seed=seed
        )
        documents = [document for group in chosen.values() for document in group]
        random.Random(seed).shuffle(documents)
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("w", encoding="utf8", newline="\n") as file:
            for document in documents:
                file.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
        rows = [
            (name, f"{len(group):,}", f"{sum(len(d.split()) for d in group):,}")
            for name, group in chosen.items()
        ]
        total = sum(len(document.split()) for document in documents)
        header, footer = ("source", "documents", "words"), ("", f"{len(documents):,}", f"{total:,}")
        msg.table(rows, header=header, footer=footer, divider=True, aligns=("l", "r", "r"))
        msg.good(f"Wrote {output}")


if __name__ == "__main__":
    typer.run(main)
