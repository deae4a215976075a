"""Texts to pieces, with the `tokenizers` library on the raw text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spacy_distil.errors import WeightsError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A forked child inherits a pool of threads that do not exist there: `tokenizers` would wait for
# them for ever where this variable is "true", and prints a warning at each fork where it is not
# set. It looks at it before Python's own hooks run in the child.
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


@dataclass(frozen=True)
class Pieces:
    """The pieces of one text, special pieces not among them.

    ids: (n_pieces,) int64, vocabulary ids.
    starts, ends: (n_pieces,) int64, character offsets into the text, end exclusive.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class PieceTokenizer:
    """A fast tokenizer, stripped of what would lose text.

    Saved tokenizers may truncate and pad, and they read a literal "[SEP]" in a text as the special
    piece: all three are switched off.

    prefix, suffix: ids of the special pieces around one window, e.g. [CLS] and [SEP].
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        probe = tokenizer.encode("a", add_special_tokens=True)
        own = [i for i, special in enumerate(probe.special_tokens_mask) if not special]
        if not own:
            raise WeightsError(
                "The tokenizer gives no piece for the text 'a'. "
                "tokenizer.json does not hold a tokenizer that can be used on text."
            )
        self.prefix: list[int] = probe.ids[: own[0]]
        self.suffix: list[int] = probe.ids[own[-1] + 1 :]

    @classmethod
    def from_str(cls, json: str | bytes) -> PieceTokenizer:
        """Read the text of a `tokenizer.json`, or its UTF-8.

        Raises WeightsError where it is not one.
        """
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_buffer(json if isinstance(json, bytes) else json.encode())
        except Exception as error:  # tokenizers raises bare Exception
            raise WeightsError(f"tokenizer.json cannot be read: {error}") from error
        return cls(tokenizer)

    def to_str(self) -> str:
        """The text of a `tokenizer.json`."""
        return self._tokenizer.to_str()

    @property
    def vocab_size(self) -> int:
        """Number of pieces, added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def n_special(self) -> int:
        """Number of special pieces in each window."""
        return len(self.prefix) + len(self.suffix)

    def __call__(self, texts: Sequence[str]) -> list[Pieces]:
        """Pieces of each text; all texts are tokenized in one call."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [_to_pieces(encoding) for encoding in encodings]


def _to_pieces(encoding: Any) -> Pieces:
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    return Pieces(
        ids=np.array(encoding.ids, dtype=np.int64),
        # Normalizers that reorder characters (combining marks) can report offsets that step back;
        # the alignment needs them sorted.
        starts=np.minimum.accumulate(offsets[::-1, 0])[::-1],
        ends=np.maximum.accumulate(offsets[:, 1]),
    )
