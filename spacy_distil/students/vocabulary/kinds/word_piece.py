"""WordPiece, which repeatedly takes the longest piece that fits (BERT, DistilBERT, ELECTRA, MPNet).

Fewer pieces never make another piece fit, so text that uses only kept pieces is encoded as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from spacy_distil.students.vocabulary.kinds.base import Text
from spacy_distil.students.vocabulary.kinds.word_level import WordLevel


class WordPiece(WordLevel):
    """A tokenizer whose pieces within a word have a prefix, mostly "##"."""

    @property
    def prefix(self) -> str:
        prefix: str = self.model["continuing_subword_prefix"]
        return prefix

    def count(self, texts: Sequence[Text]) -> np.ndarray:
        """Count pieces.

        Pieces that fit the start of an unknown word count, too. Without them, shorter pieces might
        fit, and the word would no longer be unknown.
        """
        counts = super().count(texts)
        unknown = self.unknown_id
        if unknown is None or not counts[unknown]:
            return counts
        is_split = not isinstance(texts[0], str)
        encodings = self.reader.backend.encode_batch(
            list(texts), is_pretokenized=is_split, add_special_tokens=False
        )
        for text, encoding in zip(texts, encodings, strict=True):
            for i, (start, end), word in zip(
                encoding.ids, encoding.offsets, encoding.word_ids, strict=True
            ):
                if i == unknown:
                    source = text[word] if is_split else text
                    for fitting in self._start_of_unknown(str(source)[start:end]):
                        counts[fitting] += 1
        return counts

    def text_of(self, piece: str) -> str:
        return piece.removeprefix(self.prefix)

    def can_occur(self, piece: str) -> bool:
        """Whether a piece can occur in text.

        Examples: "[unused1]" cannot, nor "##." if punctuation is a word of its own.
        """
        text = self.text_of(piece)
        if text != piece:
            text *= 2  # places the second one within a word
        normalizer, splitter = self.reader.backend.normalizer, self.reader.backend.pre_tokenizer
        normal = text if normalizer is None else normalizer.normalize_str(text)
        if splitter is None:
            return bool(normal == text)
        return [word for word, _ in splitter.pre_tokenize_str(normal)] == [text]

    def _start_of_unknown(self, word: str) -> Iterator[int]:
        """Find the ids that WordPiece matches before it gives up on a word."""
        if self.reader.backend.normalizer is not None:
            word = self.reader.backend.normalizer.normalize_str(word).strip()
        if len(word) > self.model["max_input_chars_per_word"]:
            return
        start, prefix = 0, ""
        while start < len(word):
            for end in range(len(word), start, -1):
                piece_id = self.vocab.get(prefix + word[start:end])
                if piece_id is not None:
                    yield piece_id
                    start, prefix = end, self.prefix
                    break
            else:
                return
