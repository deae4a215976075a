"""Predictions of a pipeline for a test set, kept after the pipeline is gone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spacy
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from spacy.vocab import Vocab

from spacy_distil.report.worker import collect_predictions
from spacy_distil.text.documents import read_examples


@dataclass(frozen=True)
class Predictions:
    """Predicted docs of one pipeline, with tags, entities and categories.

    data: a `DocBin` as bytes, which take much less memory than docs.
    categories: as by `find_categories`.
    """

    data: bytes
    categories: dict[str, Any] | None

    @classmethod
    def of(cls, examples: Iterable[Example], categories: dict[str, Any] | None) -> Predictions:
        return cls(collect_predictions(examples).to_bytes(), categories)

    def docs(self, vocab: Vocab) -> Iterator[Doc]:
        """Make the docs again, one at a time."""
        return DocBin().from_bytes(self.data).get_docs(vocab)

    def examples(self, references: Sequence[Doc]) -> Iterator[Example]:
        """Pair the docs with annotated ones, one at a time."""
        if not references:
            return
        for pair in zip(self.docs(references[0].vocab), references, strict=True):
            yield Example(*pair)

    @property
    def exclusive_categories(self) -> list[str]:
        """The categories of which a document has one; empty for others."""
        if self.categories is None or self.categories["threshold"] is not None:
            return []
        return list(self.categories["labels"])


def read_references(gold: Path, *, limit: int = 0) -> list[Doc]:
    """Read annotated documents. gold, limit: see `read_examples`."""
    return [example.reference for example in read_examples(spacy.blank("xx"), gold, limit=limit)]


def align_entities(example: Example) -> Iterator[tuple[str, int, int]]:
    """Yield label, start and end of predicted entities, in gold tokens, as `get_ner_prf` counts.

    An entity over tokens without annotation does not count.
    """
    if not example.reference.has_annotation("ENT_IOB"):
        return
    for ent in example.predicted.ents:
        aligned = example.alignment.x2y[ent.start : ent.end]
        if not len(aligned):
            continue
        start, end = int(aligned[0]), int(aligned[-1]) + 1
        if not any(token.ent_iob == 0 for token in example.reference[start:end]):
            yield ent.label_, start, end


def best_category(cats: Mapping[str, float], labels: Sequence[str]) -> str | None:
    """The category with the highest score among `labels`; `None` without scores."""
    scores = {label: score for label, score in cats.items() if label in labels}
    return max(scores, key=lambda label: scores[label]) if scores else None
