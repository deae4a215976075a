"""The classes of `doc._.trf_data`, with the same attributes as in spacy-transformers.

Arrays are numpy arrays, or CuPy arrays for hidden states on a GPU. To make, save or load them, none
of torch, transformers and spacy-transformers is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import srsly
from thinc.api import xp2torch
from thinc.types import Ragged

from spacy_distil.errors import require

# The key of a serialized `TransformerData`. spacy-transformers uses another one.
_MARK = "__spacy_distil_trf_data__"


class ModelOutput(dict[str, Any]):
    """Outputs by name, as items or attributes, and by number."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"No model output {name!r}, only {', '.join(self)}.") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the outputs without their names."""
        return tuple(self.values())


@dataclass(eq=False)
class WordpieceBatch:
    """The windows of a doc.

    strings: texts of the pieces, `length` of them for each window, with special pieces such as
        [CLS] at both ends, then padding.
    input_ids: (n_windows, length) int64.
    attention_mask: (n_windows, length) float32, 1 for pieces, 0 for padding.
    lengths: number of pieces in each window, without padding.
    token_type_ids: (n_windows, length) int64, all 0, or None for an encoder without token types.
    """

    strings: list[list[str]]
    input_ids: np.ndarray
    attention_mask: np.ndarray
    lengths: list[int]
    token_type_ids: np.ndarray | None

    def __len__(self) -> int:
        return len(self.strings)

    def __getitem__(self, index: int | slice) -> WordpieceBatch:
        """Select windows, or a single window, as a batch."""
        if not isinstance(index, slice):
            window = range(len(self))[index]
            index = slice(window, window + 1)
        types = self.token_type_ids
        return WordpieceBatch(
            strings=self.strings[index],
            input_ids=self.input_ids[index],
            attention_mask=self.attention_mask[index],
            lengths=self.lengths[index],
            token_type_ids=None if types is None else types[index],
        )

    def to_hf_dict(self) -> dict[str, Any]:
        """Convert to a dict of torch tensors, as the tokenizers of transformers return it."""
        require("torch", extra="train", purpose="A dict of torch tensors")
        arrays: dict[str, Any] = {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "token_type_ids": self.token_type_ids,
        }
        tensors = {key: xp2torch(array) for key, array in arrays.items() if array is not None}
        return {**tensors, "input_texts": self.strings}

    @classmethod
    def empty(cls, *, xp: Any = np) -> WordpieceBatch:
        """Make a batch without windows."""
        return cls([], xp.zeros((0, 0), dtype="i"), xp.ones((0, 0), dtype="bool"), [], None)

    @classmethod
    def zeros(cls, lengths: list[int], xp: Any = np) -> WordpieceBatch:
        """Make windows of empty pieces. lengths: the length of each window, all the same."""
        return cls(
            strings=[[""] * length for length in lengths],
            input_ids=xp.zeros((len(lengths), max(lengths)), dtype="i"),
            attention_mask=xp.ones((len(lengths), max(lengths)), dtype="bool"),
            lengths=lengths,
            token_type_ids=None,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "strings": self.strings,
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "lengths": self.lengths,
            "token_type_ids": self.token_type_ids,
        }

    def from_dict(self, msg: dict[str, Any]) -> WordpieceBatch:
        # A DocBin returns tuples instead of lists.
        self.strings = [list(window) for window in msg["strings"]]
        self.input_ids = msg["input_ids"]
        self.attention_mask = msg["attention_mask"]
        self.lengths = list(msg["lengths"])
        self.token_type_ids = msg["token_type_ids"]
        return self


@dataclass(eq=False)
class TransformerData:
    """The pieces and hidden states of one doc.

    wordpieces: its windows.
    model_output: `last_hidden_state`, (n_windows, length, width) float32, zeros for padding. A doc
        without tokens has no windows: (0, 0, width). There is no pooler output: `tensors[-1]` is
        `tensors[0]`. Use `doc.vector` for a vector of the doc.
    align: places of the pieces of each token in the flattened (n_windows * length) grid:
        `align[i].data.flatten()` for token i, `align[span.start : span.end].data.flatten()` for a
        span, `align.lengths` for their numbers. A piece in the overlap of two windows has two
        places.
    """

    wordpieces: WordpieceBatch
    model_output: ModelOutput
    align: Ragged

    @classmethod
    def empty(cls, width: int = 0, *, xp: Any = np) -> TransformerData:
        """Make the data of a doc without tokens, whose encoder has this width."""
        return cls(
            wordpieces=WordpieceBatch.empty(),
            model_output=ModelOutput(last_hidden_state=xp.zeros((0, 0, width), dtype="f")),
            align=make_ragged(np.zeros(0, dtype="i"), np.zeros(0, dtype="i")),
        )

    @classmethod
    def zeros(cls, length: int, width: int, *, xp: Any = np) -> TransformerData:
        """Make one window of `length` pieces, each of them a token, with vectors of zeros."""
        return cls(
            wordpieces=WordpieceBatch.zeros([length], xp=xp),
            model_output=ModelOutput(last_hidden_state=xp.zeros((1, length, width), dtype="f")),
            align=make_ragged(np.arange(length), np.ones(length, dtype="i")),
        )

    @property
    def tensors(self) -> tuple[Any, ...]:
        """All outputs. The first is `last_hidden_state`."""
        return self.model_output.to_tuple()

    @property
    def tokens(self) -> dict[str, Any]:
        """The pieces as a dict of torch tensors."""
        return self.wordpieces.to_hf_dict()

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return int(self.model_output.last_hidden_state.shape[-1])

    def to_dict(self) -> dict[str, Any]:
        return {
            "wordpieces": self.wordpieces.to_dict(),
            "model_output": dict(self.model_output),
            "align": [self.align.dataXd, self.align.lengths],
        }

    def from_dict(self, msg: dict[str, Any]) -> TransformerData:
        self.wordpieces = WordpieceBatch.empty().from_dict(msg["wordpieces"])
        self.model_output = ModelOutput(msg["model_output"])
        self.align = make_ragged(*msg["align"])
        return self

    def to_bytes(self) -> bytes:
        return srsly.msgpack_dumps(self.to_dict())

    def from_bytes(self, data: bytes) -> TransformerData:
        return self.from_dict(srsly.msgpack_loads(data))


@dataclass(eq=False)
class TransformerBatch:
    """The data of a batch of docs, for a setter of extra annotations.

    doc_data: the data of each doc.
    """

    doc_data: list[TransformerData]


def make_ragged(data: Any, lengths: Any) -> Ragged:
    """Make a Ragged of two 1d arrays. thinc's stubs do not accept numpy arrays."""
    return Ragged(data, lengths)


# Serialize `doc._.trf_data`: `nlp.pipe` with `n_process`, `Doc.to_bytes`, `DocBin` write msgpack.


@srsly.msgpack_encoders("spacy_distil.component.trf_data")
def _encode(obj: Any, chain: Callable[[Any], Any] | None = None) -> Any:
    if isinstance(obj, TransformerData):
        return {_MARK: obj.to_dict()}
    return obj if chain is None else chain(obj)


@srsly.msgpack_decoders("spacy_distil.component.trf_data")
def _decode(obj: Any, chain: Callable[[Any], Any] | None = None) -> Any:
    if _MARK in obj:
        return TransformerData.empty().from_dict(obj[_MARK])
    return obj if chain is None else chain(obj)
