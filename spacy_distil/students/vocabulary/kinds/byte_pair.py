"""BPE on bytes (RoBERTa, ModernBERT) or on characters (SentencePiece).

BPE joins the pair of neighbours that comes first in its list of merges, again and again (Sennrich
et al. 2016). A piece needs the pieces that it is joined from. If all merges that a text takes stay,
dropping others changes nothing: at each step the first one that applies is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any

from spacy_distil.errors import ConfigError
from spacy_distil.students.vocabulary.kinds.unigram import SPACE
from spacy_distil.students.vocabulary.kinds.word_level import WordLevel


class BytePair(WordLevel):
    """A tokenizer with a list of merges."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        for setting in ("continuing_subword_prefix", "end_of_word_suffix"):
            if self.model.get(setting):
                raise ConfigError(
                    f"The tokenizer is a BPE with {setting} = {self.model[setting]!r}, whose "
                    "vocabulary cannot be pruned. Leave vocabulary pruning out."
                )

    @cached_property
    def is_bytes(self) -> bool:
        """Whether the characters of pieces stand for bytes."""
        return any(
            _has_byte_level(self.content.get(part)) for part in ("normalizer", "pre_tokenizer")
        )

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """Pairs of pieces, the first to be merged first."""
        return [
            (left, right)
            for merge in self.model["merges"]
            for left, right in [merge.split(" ") if isinstance(merge, str) else merge]
        ]

    @cached_property
    def ranks(self) -> dict[tuple[str, str], int]:
        return {pair: rank for rank, pair in enumerate(self.merges)}

    def required(self) -> set[int]:
        required = super().required()
        if self.is_bytes:
            required |= {i for piece, i in self.vocab.items() if len(piece) == 1}
        return required

    def parts(self, piece_id: int) -> set[int]:
        """Ids of a piece and of all pieces between its characters and itself."""
        whole = self.pieces[piece_id]
        symbols = list(whole)
        made = {*symbols}
        while len(symbols) > 1:
            pairs = pairwise(symbols)
            ranked = [(self.ranks[p], i) for i, p in enumerate(pairs) if p in self.ranks]
            if not ranked:
                return {piece_id}  # text reaches it as a whole word only
            _, i = min(ranked)
            symbols[i : i + 2] = ["".join(symbols[i : i + 2])]
            made.add(symbols[i])
        return {piece_id, *(self.vocab[piece] for piece in made if piece in self.vocab)}

    def text_of(self, piece: str) -> str:
        return piece.replace(SPACE, " ")

    def can_occur(self, piece: str) -> bool:
        return self.is_bytes or super().can_occur(piece)

    def keep(self, new_ids: Mapping[int, int]) -> dict[str, Any]:
        kept = {piece for piece, i in self.vocab.items() if i in new_ids}
        merges = [
            merge
            for merge, (left, right) in zip(self.model["merges"], self.merges, strict=True)
            if left in kept and right in kept and left + right in kept
        ]
        return {**super().keep(new_ids), "merges": merges}


def _has_byte_level(part: Any) -> bool:
    """Whether a normalizer or pre-tokenizer, or a part of it, turns text into bytes."""
    if isinstance(part, list):
        return any(map(_has_byte_level, part))
    return isinstance(part, dict) and (
        part["type"] == "ByteLevel"
        or any(_has_byte_level(part.get(name)) for name in ("normalizers", "pretokenizers"))
    )
