"""Treebanks and entities of several languages, as one corpus.

They are UD French Sequoia and German GSD (UPOS), Universal NER Swedish Talbanken and Portuguese
Bosque (entities), and English EWT (both). What a language lacks is missing in its documents, so
they train the other pipes. XPOS tags are left out: each language has a set of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts._conllu import (
    Document,
    join_entities,
    named_documents,
    read_conllu,
    read_iob2,
)
from scripts._notes import Notes


@dataclass(frozen=True)
class Treebank:
    """The files of a language: PREFIX-SPLIT with each of the suffixes.

    lang: code of the language.
    """

    lang: str
    prefix: str
    suffixes: tuple[str, ...]

    def files(self, split: str) -> list[str]:
        """The names of the files of a split."""
        return [f"{self.prefix}-{split}{suffix}" for suffix in self.suffixes]


EWT = Treebank("en", "en_ewt-ud", (".conllu", ".iob2"))
TREEBANKS = (
    EWT,
    Treebank("fr", "fr_sequoia-ud", (".conllu",)),
    Treebank("de", "de_gsd-ud", (".conllu",)),
    Treebank("sv", "sv_talbanken-ud", (".iob2",)),
    Treebank("pt", "pt_bosque-ud", (".iob2",)),
)


def read_treebank(
    treebank: Treebank, split: str, assets: Path, notes: Notes
) -> Iterator[tuple[Document, list[str]]]:
    """Read the documents of a split, and the IOB2 tags of their words, "" for unknown.

    assets: directory of the files.
    notes: of the split.
    """
    paths = {Path(name).suffix: assets / name for name in treebank.files(split)}
    named = read_iob2(paths[".iob2"]) if ".iob2" in paths else None
    if ".conllu" not in paths:
        assert named is not None, treebank
        yield from named_documents(named, paths[".iob2"])
        return
    documents = read_conllu(paths[".conllu"], notes)
    if named is None:
        tags = [[""] * sum(len(s.words) for s in each.sentences) for each in documents]
    else:
        tags = join_entities(documents, named, paths[".iob2"], notes)
    yield from zip(documents, tags, strict=True)


def forget_xpos(document: Document) -> None:
    """Leave the XPOS tags of a document out."""
    for sentence in document.sentences:
        sentence.xpos = [""] * len(sentence.words)
