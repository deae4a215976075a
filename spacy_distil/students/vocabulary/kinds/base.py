"""Kinds of tokenizers, as pruning sees them."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from spacy_distil.encoding import PieceTokenizer

# The text of a document, or its tokens if the encoder reads them one by one.
Text = str | Sequence[str]

_BYTE = re.compile("<0x[0-9A-F]{2}>")


class Kind(ABC):
    """A tokenizer, as pruning sees it.

    content: its parsed tokenizer.json.
    model: the part of `content` with the vocabulary.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.model: dict[str, Any] = content["model"]

    @cached_property
    def reader(self) -> PieceTokenizer:
        """Reads text as the encoder does."""
        return PieceTokenizer.from_str(json.dumps(self.content))

    @cached_property
    def pieces(self) -> dict[int, str]:
        """All pieces by id, added ones included."""
        return {i: piece for piece, i in self.reader.read_vocabulary().items()}

    @cached_property
    def added(self) -> dict[str, int]:
        """The ids of the added pieces. `content` may have others, which `tokenizers` ignores."""
        ids = self.reader.read_vocabulary()
        return {added["content"]: ids[added["content"]] for added in self.content["added_tokens"]}

    def number(self, kept: Collection[int]) -> dict[int, int]:
        """Number kept pieces anew, in the order of their ids. RETURNS: new id by old id.

        Added pieces that the model does not have come last: `tokenizers` numbers them so, even if
        the old ids had a gap for them.
        """
        own = {*self.vocab.values()}
        return {old: new for new, old in enumerate(sorted(kept, key=lambda i: (i not in own, i)))}

    @property
    @abstractmethod
    def vocab(self) -> Mapping[str, int]:
        """The ids of the model's own pieces."""

    @property
    def unknown_id(self) -> int | None:
        """The id of the piece for text that no other piece covers."""
        return self.vocab.get(self.model.get("unk_token") or "")

    def count(self, texts: Sequence[Text]) -> np.ndarray:
        """Count how often each id occurs: (n_ids,) int64."""
        tokens = [text for text in texts if not isinstance(text, str)]
        if tokens:
            ids, _ = self.reader.pack_tokens(tokens)
        else:
            ids = self.reader.pack([text for text in texts if isinstance(text, str)])[0].ids
        return np.bincount(ids, minlength=max(self.pieces) + 1)

    def required(self) -> set[int]:
        """Ids of pieces that must stay for text to be encoded as before, besides special ones."""
        return {i for piece, i in self.vocab.items() if _BYTE.fullmatch(piece)}

    def parts(self, piece_id: int) -> set[int]:
        """Ids of the pieces without which a piece would never be made, itself included."""
        return {piece_id}

    def text_of(self, piece: str) -> str:
        """The characters of the text that a piece stands for."""
        return piece

    def can_occur(self, piece: str) -> bool:
        """Whether a piece can occur in text. It cannot if text is normalized within it."""
        normalizer = self.reader.backend.normalizer
        if normalizer is None:
            return True
        # Within a text, too: some normalizers strip its ends (DeBERTa-v3), or put a space in front.
        text = self.text_of(piece)
        within = f"a{text}a"
        return self.text_of(normalizer.normalize_str(text)) == text or (
            within in self.text_of(normalizer.normalize_str(within))
        )

    @abstractmethod
    def keep(self, new_ids: Mapping[int, int]) -> dict[str, Any]:
        """Return the model with the kept pieces alone. new_ids: as `number` returns them."""
