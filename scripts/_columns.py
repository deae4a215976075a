"""Words with entity tags: a word and its tag in each line (CoNLL 2003), or a sentence in each line.

    Ann    NNP  B-PER          Ann|NNP|B-PER left|VBD|O .|.|O
    left   VBD  O
    .      .    O

The first column is the word, the last one its entity tag in IOB, IOB2, BILUO or BIOES. A second one
of three or more is the part-of-speech tag. A blank line ends a sentence. Lines that begin with
-DOCSTART- begin documents; without any, each sentence is a document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spacy.language import Language
from spacy.tokens import Doc

from scripts._conllu import read_lines, repair_iob, to_iob
from scripts._notes import Notes
from spacy_distil.errors import CorpusError

SUFFIXES = (".conll", ".iob", ".iob2", ".bio", ".ner")
ENTITY_TAG = re.compile("O|[BILUES]-.+")


@dataclass
class _Document:
    """Words with their part-of-speech tags ("" if unknown), IOB2 tags, and sentence starts."""

    words: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    iob: list[str] = field(default_factory=list)
    starts: list[bool | int | None] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)

    def add(self, rows: Sequence[Sequence[str]], place: str) -> None:
        """Add a sentence."""
        self.words += [row[0] for row in rows]
        self.tags += [row[1] if len(row) > 2 and row[1] not in "-_" else "" for row in rows]
        self.iob += repair_iob([to_iob(row[-1]) for row in rows], place, self.notes)
        self.starts += [True] + [False] * (len(rows) - 1)

    def to_doc(self, nlp: Language) -> Doc:
        note = "documents with a space between all words, as the file has none"
        self.notes.add(note, " ".join(self.words[:8]))
        return Doc(nlp.vocab, self.words, tags=self.tags, ents=self.iob, sent_starts=self.starts)


def read_columns(path: Path, nlp: Language) -> Iterator[tuple[Doc, Notes]]:
    """Read the documents of a file, each with the notes on it."""
    sentences: list[tuple[str, list[list[str]], int]] = []
    n_documents = 0
    is_open = False
    for number, line in read_lines(path):
        place = f"{path}:{number}"
        if line.startswith("-DOCSTART-"):
            n_documents += 1
            is_open = False
        elif not line.strip():
            is_open = False
        elif all("|" in item for item in line.split()):
            rows = [item.rsplit("|", 2) for item in line.split()]
            sentences.append((place, [_check(row, place) for row in rows], n_documents))
            is_open = False
        else:
            row = line.rstrip().split("\t") if "\t" in line else line.split()
            if line.startswith("#") and not ENTITY_TAG.fullmatch(row[-1]):
                continue  # a comment
            if not is_open:
                sentences.append((place, [], n_documents))
                is_open = True
            sentences[-1][1].append(_check([part.strip() for part in row], place))
    for place, rows, _ in sentences:
        _check_columns(rows, place)
    yield from _join(sentences, nlp)


def _join(
    sentences: Sequence[tuple[str, list[list[str]], int]], nlp: Language
) -> Iterator[tuple[Doc, Notes]]:
    """Make documents of sentences: by their number, or one of each if the file marks none."""
    document, current = _Document(), 0
    for place, rows, number in sentences:
        if document.words and (number != current or number == 0):
            yield document.to_doc(nlp), document.notes
            document = _Document()
        if number == 0:
            document.notes.add("sentences that are documents of their own", place)
        document.add(rows, place)
        current = number
    if document.words:
        yield document.to_doc(nlp), document.notes


def _check(row: list[str], place: str) -> list[str]:
    if len(row) < 2 or not row[0] or not ENTITY_TAG.fullmatch(row[-1]):
        raise CorpusError(
            f"{place}: {' '.join(row)!r}; expected a word first and, last, its entity tag: O, or "
            "one such as B-PER. `python -m spacy convert` makes .spacy of other formats"
        )
    return row


def _check_columns(rows: Sequence[Sequence[str]], place: str) -> None:
    """Raise CorpusError for columns that are not the same in all lines, or begin with numbers."""
    if len({len(row) for row in rows}) > 1:
        counts = sorted({len(row) for row in rows})
        raise CorpusError(
            f"{place}: a sentence whose lines have {' and '.join(map(str, counts))} columns"
        )
    if len(rows) > 1 and [row[0] for row in rows] in (
        [str(index) for index in range(start, start + len(rows))] for start in (0, 1)
    ):
        raise CorpusError(
            f"{place}: the first column numbers the words; expected the words themselves"
        )
