"""The effect of a smaller vocabulary on texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spacy_distil.encoding import PieceTokenizer
from spacy_distil.errors import CorpusError
from spacy_distil.students.vocabulary.kinds import Text, read_kind
from spacy_distil.students.vocabulary.pruning import batches

if TYPE_CHECKING:
    from tokenizers import Encoding


@dataclass(frozen=True)
class PruningLoss:
    """The effect of pruning on texts. A word is what the tokenizer splits into pieces.

    n_words: words of the texts.
    changed: share of the words whose pieces change.
    pieces_before, pieces_after: pieces per word.
    unknown_before, unknown_after: share of the words that are an unknown piece.
    """

    n_words: int
    changed: float
    pieces_before: float
    pieces_after: float
    unknown_before: float
    unknown_after: float


def pruning_loss(old: PieceTokenizer, new: PieceTokenizer, texts: Iterable[Text]) -> PruningLoss:
    """Measure the effect of a pruned vocabulary on texts.

    old, new: the tokenizers before and after pruning.
    texts: preferably others than the corpus that the vocabulary was pruned to; or lists of tokens,
        as for `prune_vocabulary`.
    """
    kinds = [read_kind(tokenizer.to_str()) for tokenizer in (old, new)]
    n_words = n_changed = 0
    # Before and after.
    n_pieces, n_unknown = np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int64)
    for batch in batches(texts):
        encoded = [
            kind.reader.backend.encode_batch(
                batch, is_pretokenized=not isinstance(batch[0], str), add_special_tokens=False
            )
            for kind in kinds
        ]
        for pair in zip(*encoded, strict=True):
            words = [
                _words(encoding, kind.unknown_id)
                for encoding, kind in zip(pair, kinds, strict=True)
            ]
            n_words += len(words[0])
            n_changed += sum(a != b for a, b in zip(*words, strict=True))
            n_pieces += [len(encoding.ids) for encoding in pair]
            n_unknown += [sum(word.count(None) for word in side) for side in words]
    if n_words == 0:
        raise CorpusError("The texts to measure pruning on have no words: expected at least one.")
    return PruningLoss(
        n_words=n_words,
        changed=n_changed / n_words,
        pieces_before=float(n_pieces[0] / n_words),
        pieces_after=float(n_pieces[1] / n_words),
        unknown_before=float(n_unknown[0] / n_words),
        unknown_after=float(n_unknown[1] / n_words),
    )


def _words(encoding: Encoding, unknown_id: int | None) -> list[list[str | None]]:
    """Group the pieces by word. An unknown piece is None."""
    words: list[list[str | None]] = []
    last = None
    for word, piece, i in zip(encoding.word_ids, encoding.tokens, encoding.ids, strict=True):
        if word != last:
            words.append([])
            last = word
        words[-1].append(None if i == unknown_id else piece)
    return words
