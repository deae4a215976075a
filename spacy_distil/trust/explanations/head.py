"""A pipe without its encoder: token vectors in, and gradients of token vectors out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

from spacy.pipeline.tok2vec import Tok2VecListener
from spacy.tokens import Doc
from thinc.api import Model, set_dropout_rate
from thinc.types import Floats2d

from spacy_distil.component.shim import EncoderShim


class Head:
    """A copy of a pipe's model, which takes token vectors in place of its encoder's.

    The gradients of its weights stay in the copy.
    """

    def __init__(self, model: Model) -> None:
        """model: with an `encoder_nodes`."""
        layer: Model = Model("token-vectors", self._forward_input)
        # thinc's own copy has no references to layers, which some layers need.
        self._model = deepcopy(model, {id(node): layer for node in encoder_nodes(model)})
        set_dropout_rate(self._model, 0.0)
        self._vectors: Sequence[Floats2d] = ()
        self._gradients: list[Any] = []

    def __call__(
        self, docs: Sequence[Doc], vectors: Sequence[Floats2d]
    ) -> tuple[Any, Callable[[Any], list[Floats2d]]]:
        """Run the copy as in training, without dropout.

        vectors: (n_tokens, width) for each doc.
        RETURNS (output, backprop): backprop takes the gradient of the output, and returns the
            gradient of the vectors, in the shape of these.
        """
        self._vectors = vectors
        output, backprop = self._model.begin_update(list(docs))

        def backprop_to_vectors(d_output: Any) -> list[Floats2d]:
            self._gradients = [each * 0 for each in vectors]
            backprop(d_output)
            return self._gradients

        return output, backprop_to_vectors

    def _forward_input(
        self, model: Model, docs: list[Doc], is_train: bool
    ) -> tuple[list[Floats2d], Callable]:
        return [*self._vectors], self._collect

    def _collect(self, d_vectors: list[Any]) -> list[Doc]:
        for own, added in zip(self._gradients, d_vectors, strict=True):
            own += added
        return []


def encoder_nodes(model: Model) -> Iterator[Model]:
    """Yield the layers that return token vectors of an encoder: listeners, and encoders of ours
    inside of a pipe.
    """
    for node in model.walk():
        if isinstance(node, Tok2VecListener) or _has_encoder(node):
            yield node


def _has_encoder(node: Model) -> bool:
    return any(isinstance(shim, EncoderShim) for shim in node.shims)
