"""What every engine does, and what those that train do besides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from thinc.api import Ops
from thinc.types import Floats2d

from spacy_distil.encoding import Batch

# Takes the gradient of the rows that `begin_update` returned, of their shape. Call it once. Where
# several layers were asked for, it takes that of the first of them alone, too: columns that are not
# there bring no gradient, not even one of zeros, to what the others do not depend on.
Backprop = Callable[[Floats2d], None]


class Engine(Protocol):
    """Runs an encoder. Safe to call from several threads at once."""

    @property
    def width(self) -> int:
        """Width of the hidden states."""

    @property
    def n_parameters(self) -> int:
        """Number of weights."""

    @property
    def device_name(self) -> str:
        """Where it runs, for people to read."""

    @property
    def batch_pieces(self) -> int:
        """Padded pieces in a batch where the settings leave it open."""

    def predict(self, batch: Batch, ops: Ops) -> Floats2d:
        """Last hidden states at `batch.positions`: (n_rows, width) float32, an array of `ops`."""

    def to_files(self) -> dict[str, bytes]:
        """`config.json` and the weights: what each file of a saved encoder holds, by name."""


@runtime_checkable
class TrainableEngine(Engine, Protocol):
    """An engine whose weights learn. It has the hidden states of all its layers to give."""

    @property
    def n_layers(self) -> int:
        """Number of layers."""

    def predict(self, batch: Batch, ops: Ops, layers: Sequence[int] | None = None) -> Floats2d:
        """As of any engine; or the hidden states of `layers`, side by side in that order:
        (n_rows, len(layers) * width).

        layers: 0 for the embeddings, i for the output of layer i, `n_layers` for the last hidden
            states. Raises ConfigError for any other number.
        """

    def begin_update(
        self, batch: Batch, ops: Ops, layers: Sequence[int] | None = None
    ) -> tuple[Floats2d, Backprop]:
        """As `predict`, keeping what the gradient needs until `Backprop` is called."""

    def step(self, settings: StepSettings) -> None:
        """Apply the gradients gathered since the last step, and clear them."""

    def clear_gradients(self) -> None:
        """Forget the gradients gathered since the last step."""

    def optimizer_to_bytes(self) -> bytes:
        """What the optimizer remembers of earlier steps, as safetensors."""

    def optimizer_from_bytes(self, data: bytes) -> None:
        """Go on from there, with the same weights as then."""


@dataclass(frozen=True)
class StepSettings:
    """One AdamW step (Loshchilov & Hutter 2019).

    learn_rate: of the uppermost layer.
    layer_decay: factor on the learning rate for each layer further down; embeddings are lowest.
    beta1, beta2, eps: as in Adam.
    weight_decay: decoupled; not on biases and layer norms.
    grad_clip: largest norm of the gradient of all weights together; 0 for none.
    """

    learn_rate: float
    layer_decay: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip: float
