"""Reading and writing documents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import spacy

from spacy_distil.runs.files import write_text
from spacy_distil.text.documents import read_examples
from spacy_distil.text.plain_text import read_parts


def read_sentences(docs: Path) -> list[str]:
    """Read the sentences of annotated documents. A document without sentence boundaries counts as
    one sentence.

    docs: .spacy file.
    """
    texts = []
    for example in read_examples(spacy.blank("xx"), docs):
        gold = example.reference
        spans = list(gold.sents) if gold.has_annotation("SENT_START") else [gold[:]]
        texts += [span.text for span in spans if span.text.strip()]
    return texts


def read_paragraphs(path: Path) -> Iterator[list[str]]:
    """Read a plain-text file. RETURNS: the paragraphs of each document."""
    text = ""
    for part in read_parts(path):
        text += part.text
        if part.ends:
            yield text.split("\n")
            text = ""


def write_jsonl(path: Path, records: Iterable[Mapping[str, str]]) -> None:
    """Write one JSON object per line."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_text(path, "".join(lines))
