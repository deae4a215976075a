"""Split raw texts into pieces with the `tokenizers` library."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from spacy_distil.errors import WeightsError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# A forked child inherits the pool of threads of `tokenizers`, but not the threads. If this variable
# is "true", `tokenizers` would wait for them forever; if it is not set, it prints a warning at each
# fork. It reads the variable before Python's own hooks run in the child.
_PARALLELISM = "TOKENIZERS_PARALLELISM"
_parents: list[str | None] = []


def _before_fork() -> None:
    _parents.append(os.environ.get(_PARALLELISM))
    os.environ[_PARALLELISM] = "false"


def _after_fork_in_parent() -> None:
    value = _parents.pop()
    if value is None:
        del os.environ[_PARALLELISM]
    else:
        os.environ[_PARALLELISM] = value


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)


# SentencePiece writes this for a space, and reads it as one.
_SPACE = "▁"
# The library for regular expressions gives up a search that goes back too often, as nested
# repetitions such as (a+)+$ do on such text.
_PROBE = "\u2603".join(character * 40 for character in "aA1 \n.'-_\u00e9\u4e2d")
# Whether a character is a space, by its number. All spaces have lower numbers than the last one.
_IS_SPACE = np.array([chr(number).isspace() for number in range(0x3002)])


@dataclass(frozen=True)
class Pieces:
    """The pieces of one text, or of several that stand one after the other, without special pieces.

    ids: (n_pieces,) int64, vocabulary ids.
    starts, ends: (n_pieces,) int64, character offsets into the text, end exclusive. The range does
        not begin or end with a space, and offsets never decrease. A piece for spaces only, or for
        no character, has equal offsets: it belongs to no token. Line breaks and other white space
        are spaces, too, except in RoBERTa's tokenizers, which have pieces for them.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class PairTemplate:
    """The special pieces around two texts in one window: prefix, first text, middle, second text,
    suffix.
    """

    prefix: list[int]
    middle: list[int]
    suffix: list[int]

    @property
    def n_special(self) -> int:
        """Number of special pieces in a window."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)


class PieceTokenizer:
    """A fast tokenizer that keeps all of a text.

    A saved tokenizer may truncate, pad, and read a literal "[SEP]" in a text as the special piece.
    All three are switched off.

    backend: the tokenizer of `tokenizers`, with these settings.
    prefix, suffix: ids of the special pieces around one window, e.g. [CLS] and [SEP].
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises WeightsError if the tokenizer fails on text."""
        with _naming("The tokenizer fails on text"):
            self._fit(tokenizer)

    def _fit(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self.backend = tokenizer
        probe_patterns(tokenizer, "The tokenizer fails on text")
        probe = tokenizer.encode("a", add_special_tokens=True)
        own = [i for i, special in enumerate(probe.special_tokens_mask) if not special]
        if not own:
            raise WeightsError(
                "The tokenizer gives no piece for the text 'a'. "
                "tokenizer.json does not hold a tokenizer for text."
            )
        self.prefix: list[int] = probe.ids[: own[0]]
        self.suffix: list[int] = probe.ids[own[-1] + 1 :]
        self._spaces = _find_spaces(tokenizer)
        self._holds_spaces = bool(self._spaces) or _holds_spaces(tokenizer)
        self._spelled = _find_spelled(tokenizer)

    @classmethod
    def from_str(cls, json: str | bytes) -> PieceTokenizer:
        """Load the content of a `tokenizer.json`, as text or as UTF-8 bytes.

        Raises WeightsError if it is not a tokenizer.
        """
        from tokenizers import Tokenizer

        with _naming("tokenizer.json cannot be read"):
            tokenizer = Tokenizer.from_buffer(json if isinstance(json, bytes) else json.encode())
        return cls(tokenizer)

    def to_str(self) -> str:
        """Return the content of a `tokenizer.json`."""
        return self.backend.to_str()

    @cached_property
    def largest_id(self) -> int:
        """The largest id of a piece, added ones included; -1 if there is none."""
        if type(self.backend.model).__name__ == "Unigram":  # numbers its pieces without gaps
            n_pieces = self.backend.get_vocab_size(with_added_tokens=False)
            return max([n_pieces - 1, *self.backend.get_added_tokens_decoder()])
        return max(self.read_vocabulary().values(), default=-1)

    def read_vocabulary(self) -> dict[str, int]:
        """Return the ids of all pieces, added ones included."""
        return self.backend.get_vocab(with_added_tokens=True)

    @property
    def n_special(self) -> int:
        """Number of special pieces in each window."""
        return len(self.prefix) + len(self.suffix)

    @cached_property
    def pair_template(self) -> PairTemplate:
        """The special pieces of windows of two texts, e.g. [CLS] A [SEP] B [SEP].

        Raises WeightsError if the tokenizer puts nothing around or between two texts.
        """
        probe = self.backend.encode("a", "a", add_special_tokens=True)
        special = np.array(probe.special_tokens_mask, dtype=bool)
        # Where runs of special or of other pieces begin.
        changes = np.flatnonzero(np.diff(special)) + 1
        if not special[:1].all() or not special[-1:].all() or len(changes) != 4:
            raise WeightsError(
                "The tokenizer has no special pieces around two texts, such as [CLS] A [SEP] B "
                "[SEP], so nothing tells the encoder where the second one begins. Take an encoder "
                "whose tokenizer.json has them."
            )
        parts = np.split(np.array(probe.ids, dtype=np.int64), changes)
        prefix, _, middle, _, suffix = (part.tolist() for part in parts)
        return PairTemplate(prefix, middle, suffix)

    def __call__(self, texts: Sequence[str]) -> list[Pieces]:
        """Split each text into pieces. All texts are tokenized in one call.

        Raises WeightsError, which names the text, if the tokenizer fails.
        """
        packed, begins, n_pieces = self.pack(texts)
        ends = np.cumsum(n_pieces)
        return [
            Pieces(packed.ids[own], packed.starts[own] - begin, packed.ends[own] - begin)
            for begin, end, n in zip(begins, ends, n_pieces, strict=True)
            for own in [slice(end - n, end)]
        ]

    def pack(self, texts: Sequence[str]) -> tuple[Pieces, np.ndarray, np.ndarray]:
        """Split texts into pieces as if they were one, with a character between two of them.

        RETURNS (pieces, begins, n_pieces): the characters at which the texts begin, and the number
            of pieces of each, both (n_texts,) int64.
        Raises WeightsError as above.
        """
        texts = list(texts)
        encodings = self._encode(texts)
        n_pieces = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
        lengths = np.array([len(text) + 1 for text in texts], dtype=np.int64)
        begins = np.cumsum(lengths) - lengths
        n, flat = int(n_pieces.sum()), chain.from_iterable
        ids = np.fromiter(flat(encoding.ids for encoding in encodings), np.int64, n)
        offsets = flat(flat(encoding.offsets for encoding in encodings))
        starts, ends = np.fromiter(offsets, np.int64, 2 * n).reshape(-1, 2).T + np.repeat(
            begins, n_pieces
        )
        if self._spelled and (is_special := np.isin(ids, list(self._spelled))).any():
            owners = np.repeat(np.arange(len(texts)), n_pieces)
            ids, starts, ends, owners = _spell_out(
                self._spelled, is_special, ids, starts, ends, owners
            )
            n_pieces = np.bincount(owners, minlength=len(texts))
        if self._spaces:
            ends = np.where(np.isin(ids, self._spaces), starts, ends)
        if self._holds_spaces:
            text = "\0".join(texts)
            starts, ends = _without_spaces(text, starts, ends, _SPACE if self._spaces else "")
        return in_order(ids, starts, ends), begins, n_pieces

    def pack_tokens(self, docs: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Split tokens into pieces, each token by itself.

        docs: the tokens of each doc. An empty one has no pieces.
        RETURNS (ids, lengths): vocabulary ids, (n_pieces of all docs,) int64; and the number of
            pieces of each token, (n_tokens of all docs,) int64.
        Raises WeightsError as above.
        """
        has_text = np.array([bool(token) for doc in docs for token in doc], dtype=bool)
        encodings = self._encode([[token for token in doc if token] for doc in docs], is_split=True)
        n, flat = sum(map(len, encodings)), chain.from_iterable
        ids = np.fromiter(flat(encoding.ids for encoding in encodings), np.int64, n)
        owners = np.fromiter(flat(encoding.word_ids for encoding in encodings), np.int64, n)
        n_own = np.array([sum(map(bool, doc)) for doc in docs], dtype=np.int64)
        owners += np.repeat(np.cumsum(n_own) - n_own, [len(encoding) for encoding in encodings])
        if self._spelled and (is_special := np.isin(ids, list(self._spelled))).any():
            places = np.zeros(n, dtype=np.int64)  # do not matter, every piece is its token's
            ids, _, _, owners = _spell_out(self._spelled, is_special, ids, places, places, owners)
        lengths = np.zeros(len(has_text), dtype=np.int64)
        lengths[has_text] = np.bincount(owners, minlength=int(has_text.sum()))
        return ids, lengths

    def _encode(self, texts: list[Any], *, is_split: bool = False) -> list[Encoding]:
        """Encode texts, or, if `is_split`, lists of tokens."""
        settings = {"is_pretokenized": is_split, "add_special_tokens": False}
        try:
            return self.backend.encode_batch(texts, **settings)
        except (MemoryError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # includes a panic of Rust
            for text in texts:
                begin = ("".join(text) if is_split else text)[:60]
                with _naming(f"The tokenizer fails on the text that begins with {begin!r}"):
                    self.backend.encode(text, **settings)
            raise


def probe_patterns(tokenizer: Tokenizer, problem: str) -> None:
    """Raise WeightsError if a tokenizer fails on text that keeps some patterns busy.

    problem: how the error begins.
    """
    with _naming(problem):
        tokenizer.encode(_PROBE)


@contextmanager
def _naming(problem: str) -> Iterator[None]:
    """Raise WeightsError, which begins with the problem, for a failure of `tokenizers`.

    It raises bare Exceptions, and panics, which are none.
    """
    try:
        yield
    except (WeightsError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise WeightsError(
            f"{problem}: {error}. tokenizer.json is damaged, lacks a piece for unknown text, or "
            "has a pattern (Regex) that this text keeps busy for too long: save or copy the model "
            "again, or take another."
        ) from error


def in_order(ids: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Pieces:
    """Make pieces whose offsets never decrease. They can if a normalizer reorders characters
    (combining marks).
    """
    own = ends > starts
    begins, stops = starts[own], ends[own]
    starts, ends = starts.copy(), ends.copy()
    starts[own] = np.minimum.accumulate(begins[::-1])[::-1]
    ends[own] = np.maximum.accumulate(stops)
    return Pieces(ids, starts, ends)


def _find_spaces(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of SentencePiece's pieces for spaces only. Such a piece may claim the first
    character of the next word.
    """
    if not any(
        _SPACE in piece for piece in tokenizer.encode("a a", add_special_tokens=False).tokens
    ):
        return []
    ids = [tokenizer.token_to_id(_SPACE * n) for n in range(1, 17)]
    return [i for i in ids if i is not None]


def _holds_spaces(tokenizer: Tokenizer) -> bool:
    """Check whether the offsets of a word's first piece can include the space before it."""
    text = "a a"
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return any(text[start:end].strip() != text[start:end] for start, end in encoding.offsets)


def _find_spelled(tokenizer: Tokenizer) -> dict[int, list[int]]:
    """Find special pieces that the tokenizer still reads in plain text, because the vocabulary of
    its model (Unigram) has them.

    RETURNS: the ids of the single characters of each, by the id of the special piece.
    """
    # The piece for unknown text is meant to appear.
    unknown = tokenizer.encode("\ue000", add_special_tokens=False).ids
    spelled = {}
    for i, piece in tokenizer.get_added_tokens_decoder().items():
        text = piece.content
        if piece.special and i in tokenizer.encode(text, add_special_tokens=False).ids:
            characters = [tokenizer.token_to_id(character) for character in text]
            if i not in unknown and None not in characters:
                spelled[i] = characters
    return spelled


def _spell_out(
    spelled: dict[int, list[int]],
    is_special: np.ndarray,
    ids: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    owners: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Replace literal special pieces by the pieces of their characters.

    spelled: as `_find_spelled` returns it.
    is_special: (n_pieces,) bool, true for such a piece.
    owners: (n_pieces,) int64, the text of each piece.
    RETURNS (ids, starts, ends, owners): as in `Pieces`, and the new owners.
    """
    lengths = np.ones(len(ids), dtype=np.int64)
    lengths[is_special] = [len(spelled[i]) for i in ids[is_special]]
    last = np.cumsum(lengths)
    within = np.arange(lengths.sum()) - np.repeat(last - lengths, lengths)
    places = np.repeat(is_special, lengths)
    new_ids, starts, ends, owners = (
        np.repeat(array, lengths) for array in (ids, starts, ends, owners)
    )
    new_ids[places] = [character for i in ids[is_special] for character in spelled[i]]
    # A normalizer may have changed the number of characters.
    exact = places & (ends - starts == np.repeat(lengths, lengths))
    starts = np.where(exact, starts + within, starts)
    return new_ids, starts, np.where(exact, starts + 1, ends), owners


def _without_spaces(
    text: str, starts: np.ndarray, ends: np.ndarray, space: str
) -> tuple[np.ndarray, np.ndarray]:
    """Exclude spaces from both ends of each range of offsets. A range of spaces becomes empty.

    space: one more character that counts as a space, or "".
    RETURNS (starts, ends): as in `Pieces`.
    """
    numbers = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    is_space = _IS_SPACE[np.minimum(numbers, len(_IS_SPACE) - 1)]
    if space:
        is_space |= numbers == ord(space)
    n = len(numbers)
    # For each place, the start of the next character that is not a space, and the end of the last.
    nexts = np.append(np.where(is_space, n, np.arange(n)), n)
    lasts = np.append(0, np.where(is_space, 0, np.arange(1, n + 1)))
    starts = np.minimum(np.minimum.accumulate(nexts[::-1])[::-1][starts], ends)
    return starts, np.maximum(np.maximum.accumulate(lasts)[ends], starts)
