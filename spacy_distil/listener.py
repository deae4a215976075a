"""The listener `spacy-distil.Listener.v1`: spaCy's, with the width inferred."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spacy.pipeline.tok2vec import Tok2VecListener
from spacy.pipeline.tok2vec import forward as forward_tok2vec
from spacy.tokens import Doc
from thinc.api import Model
from thinc.types import Floats2d

from spacy_distil.errors import ConfigError

InT = list[Doc]
OutT = list[Floats2d]


def Listener(upstream: str = "*", width: int | None = None) -> Model[InT, OutT]:
    """Token vectors of a shared encoder that stands earlier in the pipeline.

    Differs from `spacy.Tok2VecListener.v1`, which works as well, in two points: `width` can be left
    out, and docs without tokens are no error while the encoder is frozen.

    upstream: name of the encoder's component, or "*" for any.
    width: width of its vectors; null to take it from the encoder.
    """
    return DistilListener(upstream, width)


class DistilListener(Tok2VecListener):
    # spaCy's `debug model` looks for "transformer-listener" to find the component "transformer".
    name = "distil-transformer-listener"

    def __init__(self, upstream_name: str, width: int | None) -> None:
        Model.__init__(self, self.name, forward, dims={"nO": width})
        self.upstream_name = upstream_name
        self._batch_id = None
        self._outputs = None
        self._backprop = None


def forward(model: DistilListener, docs: InT, is_train: bool) -> tuple[OutT, Callable]:
    if not is_train or model._batch_id is not None:
        return forward_tok2vec(model, docs, is_train)
    # No update has come from upstream: it is frozen, and has annotated the docs.
    if any(len(doc) and not doc.tensor.size for doc in docs):
        raise ConfigError(
            f"A pipe listens to {model.upstream_name!r}, which is frozen and set no doc.tensor. "
            "Add the encoder's component to [training] annotating_components."
        )
    width = model.get_dim("nO")
    outputs: list[Any] = [doc.tensor if len(doc) else model.ops.alloc2f(0, width) for doc in docs]
    return outputs, _backprop


def _backprop(d_tokvecs: OutT) -> InT:
    return []
