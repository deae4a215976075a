"""Samples of unlabelled text, without the documents that pipelines are scored on.

A directory has plain-text files (`SOURCES`) with one paragraph or sentence per line, and a blank
line between documents. Half of the words come from people's everyday writing, the other half from
the other sources. Paragraphs stay whole. Neighbouring paragraphs of a document are joined to about
100 words, so that a pipe sees more than one line of context. Nothing comes in twice.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.documents import read_paragraphs, read_sentences
from spacy_distil.errors import CorpusError

# Paragraphs are joined until they have `ENOUGH_WORDS`, but not to more than `MOST_WORDS`.
ENOUGH_WORDS = 100
MOST_WORDS = 150
# A shorter paragraph is a heading or a table cell.
FEWEST_WORDS = 4
# Share of letters and spaces in prose. With fewer, it is code, a table or a list of numbers.
LETTERS = 0.7
# Text is a copy of a held-out document if it has this many words in a row in common with it.
RUN = 8

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")


@dataclass(frozen=True)
class Source:
    """A file of the directory.

    share: share of the sample's words.
    sentences: whether the lines are unrelated sentences, not paragraphs of documents.
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
SOURCES_OF = {
    "en": SOURCES,
    "fr": (
        Source("common_voice_fr_sentences", 1 / 2, sentences=True),
        Source("eltec_fra_novels", 1 / 2),
    ),
    "de": (
        Source("common_voice_de_sentences", 1 / 2, sentences=True),
        Source("eltec_deu_novels", 1 / 2),
    ),
}


class HeldOut:
    """Sentences that must not be in the sample. Case and punctuation do not matter."""

    def __init__(self, sentences: Iterable[str] = ()) -> None:
        self.sentences: set[tuple[str, ...]] = set()
        self.runs: set[tuple[str, ...]] = set()
        for sentence in sentences:
            words = normalize(sentence)
            if words:
                self.sentences.add(words)
                self.runs.update(runs(words))

    @classmethod
    def read(cls, paths: Iterable[Path]) -> HeldOut:
        """Read the sentences of .spacy files."""
        return cls(sentence for path in paths for sentence in read_sentences(path))

    def __contains__(self, paragraph: object) -> bool:
        """Whether a paragraph has one of the sentences, or `RUN` words in a row of one."""
        text = str(paragraph)
        return any(run in self.runs for run in runs(normalize(text))) or any(
            normalize(sentence) in self.sentences for sentence in _SENTENCE_END.split(text)
        )


def normalize(text: str) -> tuple[str, ...]:
    """The words of a text in lower case."""
    return tuple(_WORD.findall(text.casefold()))


def runs(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """All sequences of `RUN` words in a row."""
    return (words[start : start + RUN] for start in range(len(words) - RUN + 1))


def is_prose(paragraph: str) -> bool:
    letters = sum(character.isalpha() or character.isspace() for character in paragraph)
    return len(paragraph.split()) >= FEWEST_WORDS and letters >= LETTERS * len(paragraph)


def join(paragraphs: Iterable[str]) -> Iterator[str]:
    """Join neighbours with a space, as treebanks do: a line break would be a token."""
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
    """Read all documents of a source that may be in the sample.

    seen: words of the paragraphs that came before. New ones are added.
    """
    for document in read_paragraphs(path):
        kept = []
        for paragraph in document:
            text = " ".join(paragraph.split())
            words = normalize(text)
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
    """Sample documents, about `n_words` in total, in random order.

    RETURNS: by source.
    """
    held_out = held_out or HeldOut()
    seen: set[tuple[str, ...]] = set()
    chosen: dict[str, list[str]] = {}
    for source in sources:
        path = directory / f"{source.name}.txt"
        if not path.is_file():
            raise CorpusError(f"No such file: {path}")
        documents = list(candidates(path, source, held_out, seen))
        # Each source has its own random numbers: another share of one leaves the others unchanged.
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


def shuffled(chosen: dict[str, list[str]], seed: int) -> list[str]:
    """The documents of all sources, in random order."""
    documents = [document for group in chosen.values() for document in group]
    random.Random(seed).shuffle(documents)
    return documents


def count_words(documents: Iterable[str]) -> int:
    """Number of words between spaces."""
    return sum(len(document.split()) for document in documents)
