"""What every engine does, and what those that train do besides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from thinc.api import Ops
from thinc.types import Floats2d

from spacy_distil.encoding import Batch

# Takes the gradient of the rows that `begin_update` returned, (n_rows, width). Call it once.
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
    """An engine whose weights learn."""

    def begin_update(self, batch: Batch, ops: Ops) -> tuple[Floats2d, Backprop]:
        """As `predict`, keeping what the gradient needs until `Backprop` is called."""

    def step(self, settings: StepSettings) -> None:
        """Apply the gradients gathered since the last step, and clear them."""


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
