"""A batch between the encoder's forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from spacy.tokens import Doc
from thinc.api import Optimizer
from thinc.types import Floats2d

# The reporter of the gradient of hidden states. Other reporters are listeners, whose `id` is not 0.
HIDDEN_STATES = 0


@dataclass
class OpenBatch:
    """A batch that waits for the gradients of its token vectors.

    docs: the docs of the batch.
    d_states: sum of the gradients of all hidden states that were handed out,
        (n_vectors of all docs, width for each of the layers).
    last: its columns for the last layer. The listeners report their gradient.
    n_hidden: number of columns, from the first on, whose gradient does not come from listeners;
        0 for none.
    backprop: runs the backward pass. It takes `d_states`, or only its first columns.
    waiting: ids of the listeners that have not reported a gradient yet, and HIDDEN_STATES if that
        gradient has not been reported.
    reported: ids of those that have reported.
    tokens: the rows of tokens; the others are of docs.
    optimizer: takes a step after the backward pass, if one was requested.
    """

    docs: list[Doc]
    d_states: Floats2d
    last: slice
    n_hidden: int
    backprop: Callable[[Floats2d], None]
    waiting: set[int] = field(default_factory=set)
    reported: set[int] = field(default_factory=set)
    tokens: Any = field(default_factory=lambda: slice(None), repr=False)
    optimizer: Optimizer | None = field(default=None, repr=False)

    @property
    def has_gradient(self) -> bool:
        """Whether any gradient has been reported."""
        return bool(self.reported)

    @property
    def has_listener_gradient(self) -> bool:
        """Whether a listener has reported a gradient."""
        return bool(self.reported - {HIDDEN_STATES})

    def run_backward(self) -> None:
        """Run the encoder's backward pass. Layers above those with a gradient get none, not even
        zeros, which would make their weights decay.
        """
        n_columns = None if self.has_listener_gradient else self.n_hidden
        self.backprop(self.d_states[:, :n_columns])

    def is_over(self, docs: list[Doc]) -> bool:
        """Check whether the batch is over when `docs` are predicted. It is over if a listener has
        reported, or if these are other docs: an annotating component predicts the docs of the batch
        itself between forward and backward.
        """
        own = set(map(id, self.docs))
        return self.has_listener_gradient or any(id(doc) not in own for doc in docs)
