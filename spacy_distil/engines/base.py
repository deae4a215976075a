"""The interface of an engine, and of an engine that trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from thinc.api import Ops
from thinc.types import Floats2d

from spacy_distil.encoding import Batch, Pooling, RaggedBatch
from spacy_distil.runs.digests import Parts

# Takes the gradient of the rows that `begin_update` returned, of the same shape. Call it once. If
# several layers were requested, it also accepts the gradient of the first of them alone. Weights
# that only the missing columns depend on then get no gradient, not even zeros.
Backprop = Callable[[Floats2d], None]


class Engine(Protocol):
    """Runs an encoder. Several threads may call it at once."""

    @property
    def width(self) -> int:
        """Width of the hidden states."""

    @property
    def n_parameters(self) -> int:
        """Number of weights."""

    @property
    def n_token_types(self) -> int:
        """Number of token types: 2 if the pieces of a second text have an embedding of their own,
        otherwise 1.
        """

    @property
    def device_name(self) -> str:
        """The device that runs the encoder, for users to read."""

    @property
    def batch_pieces(self) -> int:
        """Padded pieces in a batch if the settings do not say."""

    @property
    def length_multiple(self) -> int:
        """The lengths that are fastest are multiples of this number. Any other length works."""

    def predict(self, batch: Batch, ops: Ops) -> Floats2d:
        """Compute the last hidden states at `batch.positions`.

        RETURNS: (n_rows, width) float32, an array of `ops`.
        """

    def to_parts(self) -> dict[str, Parts]:
        """Return the parts of `config.json` and of the weights' file, by name. They share the
        memory of the weights.
        """

    def to_files(self) -> dict[str, bytes]:
        """Return a copy of `config.json` and of the weights' file, by name."""


@runtime_checkable
class TokenEngine(Engine, Protocol):
    """An engine that needs no padded batches, and pools pieces to tokens itself."""

    def predict_tokens(
        self,
        batches: Iterable[RaggedBatch],
        pooling: Pooling,
        n_tokens: Sequence[int],
        ops: Ops,
    ) -> list[Floats2d]:
        """Compute the token vectors of docs.

        batches: all windows of the docs.
        pooling: of these windows' rows to tokens.
        n_tokens: number of tokens of each doc.
        RETURNS: an array of its own for each doc, (n_tokens, width) float32.
        """


@runtime_checkable
class TrainableEngine(Engine, Protocol):
    """An engine whose weights learn. It can return the hidden states of all its layers."""

    @property
    def n_layers(self) -> int:
        """Number of layers."""

    def predict(self, batch: Batch, ops: Ops, layers: Sequence[int] | None = None) -> Floats2d:
        """Compute the hidden states of the last layer, or of several.

        layers: 0 for the embeddings, i for the output of layer i, `n_layers` for the last hidden
            states. Any other number raises ConfigError. None for the last hidden states.
        RETURNS: (n_rows, width), or (n_rows, len(layers) * width), side by side in that order.
        """

    def begin_update(
        self, batch: Batch, ops: Ops, layers: Sequence[int] | None = None
    ) -> tuple[Floats2d, Backprop]:
        """Do the same as `predict`, and keep what the backward pass needs until it runs."""

    def step(self, settings: StepSettings) -> None:
        """Apply the gradients gathered since the last step, and clear them."""

    def clear_gradients(self) -> None:
        """Discard the gradients gathered since the last step."""

    def optimizer_to_bytes(self) -> bytes:
        """Serialize the state of the optimizer as safetensors."""

    def optimizer_from_bytes(self, data: bytes) -> None:
        """Restore the state of the optimizer. The weights must come from the same step."""


@dataclass(frozen=True)
class StepSettings:
    """Settings of one AdamW step (Loshchilov & Hutter 2019).

    learn_rate: learning rate of the uppermost layer.
    layer_decay: factor on the learning rate for each layer further down; embeddings are lowest.
    beta1, beta2, eps: as in Adam.
    weight_decay: decoupled; not applied to biases and layer norms.
    grad_clip: largest norm of the gradient of all weights together; 0 for no limit.
    """

    learn_rate: float
    layer_decay: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip: float
