"""The functions that `convert` asks of a package whose pipelines it converts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from spacy.language import Language
from spacy.tokens import Doc
from thinc import api
from thinc.api import Model, get_ops
from thinc.types import Ragged

from spacy_distil.encoding import pooling

# Layers that pool pieces to tokens, to the names of poolings.
REDUCTIONS = {f"reduce_{name}": name for name in pooling.REDUCTIONS}

# The pooling, the factor of the gradient and the upstream component: they identify a reader in
# config and model.
ReaderKey = tuple[str, float, str | None]


@dataclass(frozen=True)
class Reader:
    """A layer of a pipe that reads token vectors from a transformer.

    node: the layer: docs in, one (n_tokens, width) array per doc out.
    pooling: name of the reduction, e.g. "mean"; for any other layer the layer's name.
    grad_factor: factor of the gradient that it passes to the transformer.
    upstream: name of the component that it listens to, or "*"; `None` for a reader with a
        transformer of its own, which `nlp.replace_listeners` makes.
    own: the reader's own transformer; `None` for a listener.
    """

    node: Model
    pooling: str
    grad_factor: float
    upstream: str | None
    own: Model | None

    @property
    def key(self) -> ReaderKey:
        """The settings that identify the reader in config and model."""
        return self.pooling, self.grad_factor, self.upstream


class Source(Protocol):
    """A package whose pipelines can be converted. A module for each package has these functions.

    An encoder is the model that turns docs into hidden states: of a transformer component, or
    inside a reader with a transformer of its own.
    """

    def find_transformers(self, nlp: Language) -> dict[str, Any]:
        """Find the transformer components of a pipeline by name, in order."""

    def is_encoder(self, node: Model) -> bool:
        """Whether a layer is an encoder."""

    def is_listener(self, node: Model) -> bool:
        """Whether a layer takes hidden states from a transformer component."""

    def find_readers(self, model: Model) -> list[Reader]:
        """Find the layers of a pipe's model that read a transformer."""

    def find_blocks(
        self, config: dict[str, Any]
    ) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        """Find the blocks of the readers in a pipe's config. RETURNS: path and block of each."""

    def block_key(self, block: dict[str, Any]) -> ReaderKey:
        """Read the `Reader.key` from the reader's block in the config."""

    def problems_of_component(self, name: str, pipe: Any) -> Iterator[str]:
        """Find the reasons why a transformer component cannot be converted, encoder aside."""

    def problems_of_encoder(self, name: str, encoder: Model) -> Iterator[str]:
        """Find the reasons why an encoder cannot be converted. name: of its component."""

    def problems_of_listeners(self, name: str, model: Model) -> Iterator[str]:
        """Find listeners that have no counterpart. name: of their component."""

    def notes_on(self, name: str, pipe: Any, config: dict[str, Any]) -> Iterator[str]:
        """Describe the changes of a transformer component beyond long documents.

        config: the config of the component.
        """

    def is_frozen(self, pipe: Any) -> bool:
        """Whether training leaves the encoder of a transformer component alone."""

    def encoder_settings(
        self,
        settings: dict[str, Any],
        initialize: dict[str, Any],
        encoder: Model,
        *,
        window: int | None,
    ) -> dict[str, Any]:
        """Choose settings of `spacy-distil.DistilTransformer.v1` for a converted encoder.

        An encoder that was trained on short windows is worse on long ones. The new windows are
        therefore about as long as in training.

        settings: the block of the encoder in the config.
        initialize: settings of its component in `[initialize.components]`.
        window: the user's choice; `None` for none.
        """

    def save_encoder(self, encoder: Model, directory: Path) -> None:
        """Write an encoder and its tokenizer as a Hugging Face model directory."""

    def windows_of(self, encoder: Model, doc: Doc) -> list[list[int]] | None:
        """Compute the ids of each window of a doc, special pieces included.

        RETURNS: the windows; `None` if the encoder cannot process the doc.
        """

    def write_tensors(self, pipe: Any, pooling: str) -> None:
        """Make a transformer component write token vectors to `doc.tensor`, to compare them."""


def reduce_pieces(rows: Any, lengths: Any, pooling: str) -> Any:
    """Pool the rows of pieces to token vectors, as a reader does.

    rows: (n_pieces, width), grouped by token.
    lengths: (n_tokens,) number of rows of each token. A token without pieces gets a zero vector.
    """
    if not len(lengths):
        return np.zeros((0, 0), dtype="f")
    reduce: Model[Ragged, Any] = getattr(api, f"reduce_{pooling}")()
    tensor = get_ops("cpu").alloc2f(len(lengths), rows.shape[1])
    has_piece = lengths > 0
    if has_piece.any():
        tensor[has_piece] = reduce.predict(Ragged(rows, lengths[has_piece]))
    return tensor
