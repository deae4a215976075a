"""WordLevel: each word is a piece, or unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spacy_distil.students.vocabulary.kinds.base import Kind


class WordLevel(Kind):
    """A tokenizer whose pieces are words."""

    @property
    def vocab(self) -> Mapping[str, int]:
        vocab: dict[str, int] = self.model["vocab"]
        return vocab

    def keep(self, new_ids: Mapping[int, int]) -> dict[str, Any]:
        by_id = sorted(self.vocab.items(), key=lambda item: item[1])
        return {**self.model, "vocab": {p: new_ids[i] for p, i in by_id if i in new_ids}}
