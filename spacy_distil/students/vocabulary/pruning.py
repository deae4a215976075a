"""Choose the pieces of a smaller vocabulary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.students.vocabulary.characters import choose_characters, count_dropped
from spacy_distil.students.vocabulary.kinds import Kind, Text, read_kind
from spacy_distil.students.vocabulary.renumbering import renumber, special_ids

T = TypeVar("T")
# Texts tokenized at a time. It bounds the memory for a large corpus.
BATCH_TEXTS = 1024


@dataclass(frozen=True)
class PrunedVocabulary:
    """The result of pruning a vocabulary.

    tokenizer_json: text of the new tokenizer.json, whose ids have no gaps.
    kept_ids: (n_kept,) int64, the old id of each new id, see `Kind.number`. The new embeddings are
        `old[kept_ids]`.
    counts: (n_ids,) int64, frequency of each old id in the corpus.
    dropped: frequencies of the dropped pieces in the corpus, in the order of the old ids.
    dropped_characters: numbers of dropped single characters by script ("CJK", "HANGUL"), or by
        Unicode's category if they are no letters ("So": symbols).
    """

    tokenizer_json: str
    kept_ids: np.ndarray
    counts: np.ndarray
    dropped: dict[str, int]
    dropped_characters: dict[str, int]

    @property
    def n_before(self) -> int:
        """Number of pieces before."""
        return len(self.kept_ids) + len(self.dropped)

    @property
    def n_kept(self) -> int:
        """Number of kept pieces."""
        return len(self.kept_ids)

    @property
    def missing_share(self) -> float:
        """Estimated share of the pieces of similar text that are dropped.

        Pieces that occur r times in the corpus make up (r + 1) n(r + 1) / n of other text, where
        n(r) pieces occur r times, and n is the size of the corpus (Good 1953, with r = 0 for the
        pieces that it happens not to have). Pieces are taken to be dropped by their frequency.
        """
        if not self.dropped:
            return 0.0
        dropped = np.array([*self.dropped.values()], dtype=np.int64)
        most = int(dropped.max(initial=0))
        n = np.bincount(self.counts[self.counts > 0], minlength=most + 2)
        share = (dropped == most).sum() / n[most] if most else 1.0
        mass = (n[: most + 1] * np.arange(most + 1)).sum() + share * n[most + 1] * (most + 1)
        return float(mass / max(int(self.counts.sum()), 1))

    def describe(self) -> str:
        """Say in a line what stays and what is lost."""
        line = f"{self.n_kept:,} of {self.n_before:,} pieces"
        if self.dropped_characters:
            largest = islice(self.dropped_characters.items(), 3)
            listed = ", ".join(f"{n:,} {name}" for name, n in largest)
            n = sum(self.dropped_characters.values())
            line += f", without {n:,} single characters that the text does not have ({listed})"
        return (
            f"{line}. In similar text, about {self.missing_share:.1%} of the pieces will be split "
            "into smaller ones"
        )


def prune_vocabulary(
    tokenizer_json: str,
    texts: Iterable[Text],
    *,
    min_count: int = 1,
    size: int | None = None,
    special: Collection[int] = (),
) -> PrunedVocabulary:
    """Drop pieces that do not occur in texts.

    Some pieces always stay: special and added ones, bytes, and single characters of the scripts in
    which the corpus is written (of large sets, such as Chinese characters or emoji, only the ones
    that it has). So does every piece that a kept piece is made from. If all pieces that occur stay,
    the texts are encoded as before.

    tokenizer_json: text of a tokenizer.json, with a model WordPiece, Unigram, BPE or WordLevel.
    texts: the corpus: texts, or lists of tokens for an encoder that reads token by token, as
        `DocText.split` makes them. Not both.
    min_count: keep pieces that occur at least this often in the corpus.
    size: number of pieces to keep, including the ones that always stay. It keeps the most frequent
        pieces, and replaces `min_count`. If fewer pieces occur, others that can occur in text fill
        up in the order of their ids, which is the order of frequency in most vocabularies.
    special: ids of special pieces of which the tokenizer does not know, see `special_config_ids`.
    Raises ConfigError for impossible settings and for other models, CorpusError for a corpus
    without text.
    """
    if min_count < 1:
        raise ConfigError(f"min_count = {min_count}: expected at least 1.")
    if size is not None and min_count != 1:
        raise ConfigError(
            f"min_count = {min_count} and size = {size}: expected one of them. size takes the most "
            "frequent pieces, whatever their count."
        )
    kind = read_kind(tokenizer_json)
    counts = _count(kind, texts)
    kept, single = _always_kept(kind, counts, special)
    if size is not None and size < len(kept):
        raise ConfigError(
            f"size = {size}: expected at least {len(kept)}. This vocabulary has as many special "
            "pieces, bytes and single characters, which always stay."
        )
    for piece_id in _by_frequency(kind, counts, min_count=min_count, fill=size is not None):
        missing = kind.parts(piece_id) - kept
        if size is None or len(kept) + len(missing) <= size:
            kept |= missing
        if len(kept) == size:
            break
    new_ids = kind.number(kept)
    return PrunedVocabulary(
        tokenizer_json=json.dumps(renumber(kind, new_ids), ensure_ascii=False),
        kept_ids=np.array(list(new_ids), dtype=np.int64),
        counts=counts,
        dropped={kind.pieces[i]: int(counts[i]) for i in sorted(kind.pieces) if i not in kept},
        dropped_characters=count_dropped(single, kept),
    )


def _count(kind: Kind, texts: Iterable[Text]) -> np.ndarray:
    """Count how often each id occurs: (n_ids,) int64."""
    counts = np.zeros(max(kind.pieces) + 1, dtype=np.int64)
    for batch in batches(texts):
        counts += kind.count(batch)
    if not counts.any():
        raise CorpusError("The corpus to prune the vocabulary to has no text in it.")
    return counts


def _always_kept(
    kind: Kind, counts: np.ndarray, special: Collection[int]
) -> tuple[set[int], dict[int, str]]:
    """Choose the pieces that stay whatever their frequency.

    RETURNS: their ids, and the character of each piece that has only one, by id.
    """
    required = special_ids(kind) | {*special} & kind.pieces.keys() | kind.required()
    characters: Counter[str] = Counter()
    for i in counts.nonzero()[0].tolist():
        if i not in required:
            for character in kind.text_of(kind.pieces[i]):
                characters[character] += int(counts[i])
    single = {
        i: text
        for i, piece in kind.pieces.items()
        if i not in required and len(text := kind.text_of(piece)) == 1 and kind.can_occur(piece)
    }
    return required | choose_characters(single, characters), single


def _by_frequency(kind: Kind, counts: np.ndarray, *, min_count: int, fill: bool) -> Iterator[int]:
    """Yield ids of pieces in the order in which they are kept.

    fill: whether pieces that do not occur, but can, follow.
    """
    # The most frequent first; ties go to the lower id.
    for i in np.argsort(-counts, kind="stable").tolist():
        if i in kind.pieces and (
            counts[i] >= min_count or (fill and kind.can_occur(kind.pieces[i]))
        ):
            yield i


def batches(texts: Iterable[T]) -> Iterator[list[T]]:
    """Divide texts into lists of `BATCH_TEXTS`."""
    iterator = iter(texts)
    while batch := list(islice(iterator, BATCH_TEXTS)):
        yield batch
