"""Unigram, which takes the pieces with the largest sum of scores (XLM-R, CamemBERT, ALBERT).

The best pieces of a text stay the best if others are dropped (Kudo 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from spacy_distil.students.vocabulary.kinds.base import Kind

# SentencePiece writes this for a space.
SPACE = "▁"


class Unigram(Kind):
    """A tokenizer with a score for each piece. A piece's id is its place in the list."""

    @cached_property
    def vocab(self) -> Mapping[str, int]:
        return {piece: i for i, (piece, _) in enumerate(self.model["vocab"])}

    @property
    def unknown_id(self) -> int | None:
        unknown: int | None = self.model["unk_id"]
        return unknown

    def required(self) -> set[int]:
        # An unknown character costs a fixed amount more than the piece with the lowest score.
        scores = [score for _, score in self.model["vocab"]]
        return super().required() | {scores.index(min(scores))}

    def text_of(self, piece: str) -> str:
        return piece.replace(SPACE, " ")

    def keep(self, new_ids: Mapping[int, int]) -> dict[str, Any]:
        old: list[Any] = self.model["vocab"]
        unknown = self.unknown_id
        return {
            **self.model,
            "vocab": [old[i] for i in new_ids if i < len(old)],
            "unk_id": None if unknown is None else new_ids[unknown],
        }
