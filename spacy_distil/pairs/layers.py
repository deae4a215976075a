"""The layer that encodes pairs of texts, with the encoder that the pipeline has anyway."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from thinc.api import Model
from thinc.types import Floats2d

from spacy_distil.component.listener import DistilListener
from spacy_distil.component.shim import EncoderShim
from spacy_distil.encoding import EncodedPairs, Text
from spacy_distil.encoding.pairs import read_text
from spacy_distil.errors import ConfigError

# Name of the layer.
PAIR_ROWS = "pair_rows"

InT = Sequence[tuple[Text, Text]]


@dataclass(frozen=True)
class PairRows:
    """Pairs of texts behind an encoder.

    rows: hidden states of all pieces of all windows, (n_rows, width), or their gradient.
    encoded: the windows.
    """

    rows: Floats2d
    encoded: EncodedPairs


OutT = PairRows


def pair_rows(tok2vec: Model[Any, Any]) -> Model[InT, OutT]:
    """Encode pairs of texts.

    tok2vec: `spacy-distil.Listener.v1` with pairs = true, or a `spacy-distil.DistilTransformer.v1`
        of the pipe's own.
    """
    is_listener = isinstance(tok2vec, DistilListener)
    if not is_listener and not any(isinstance(shim, EncoderShim) for shim in tok2vec.shims):
        raise ConfigError(
            f"A pipe for pairs of texts cannot use the tok2vec {tok2vec.name!r}. Take "
            "spacy-distil.Listener.v1 with pairs = true, or a spacy-distil.DistilTransformer.v1 of "
            "its own."
        )
    if isinstance(tok2vec, DistilListener) and not tok2vec.pairs:
        raise ConfigError(
            "The listener of a pipe for pairs of texts gets vectors of single docs. Set pairs = "
            "true in its spacy-distil.Listener.v1."
        )
    return Model(
        PAIR_ROWS, forward, init=init, layers=[tok2vec], dims={"nO": tok2vec.maybe_get_dim("nO")}
    )


def encoder_of(model: Model[InT, OutT]) -> EncoderShim | None:
    """Return the encoder of the layer; None if no encoder has found its listener yet."""
    layer: Any = model.layers[0]
    if isinstance(layer, DistilListener):
        layer = layer.encoder
    shims = layer.shims if layer is not None else ()
    return next((shim for shim in shims if isinstance(shim, EncoderShim)), None)


def forward(
    model: Model[InT, OutT], pairs: InT, is_train: bool
) -> tuple[OutT, Callable[[OutT], Any]]:
    encoder = _require_encoder(model)
    texts = [(read_text(first), read_text(second)) for first, second in pairs]
    encoded = encoder.encode_pairs(texts)
    listener: Any = model.layers[0]
    is_shared = isinstance(listener, DistilListener)
    # Without an open batch, the shared encoder does not learn from these examples.
    if not is_train or not encoder.is_trainable or (is_shared and not listener.learns):
        rows = encoder.predict_pairs(encoded, model.ops)
        return PairRows(rows, encoded), lambda d_rows: []
    flat = [text for pair in texts for text in pair]
    rows, backprop_rows = encoder.begin_update_pairs(encoded, flat, model.ops)

    def backprop(d_pairs: OutT) -> Any:
        backprop_rows(d_pairs.rows)
        if is_shared:
            # An optimizer step may wait for this.
            listener.report([])
        return []

    return PairRows(rows, encoded), backprop


def init(model: Model[InT, OutT], X: Any = None, Y: Any = None) -> None:
    layer = model.layers[0]
    if not isinstance(layer, DistilListener):
        layer.initialize()
    model.set_dim("nO", _require_encoder(model).width, force=True)


def _require_encoder(model: Model[InT, OutT]) -> EncoderShim:
    encoder = encoder_of(model)
    if encoder is None:
        listener: Any = model.layers[0]
        raise ConfigError(
            f"A pipe for pairs of texts listens to {listener.upstream_name!r}, but no "
            "distil_transformer of that name comes before it. Enable or add one, correct the order "
            "of the pipeline, or give the pipe an encoder of its own."
        )
    return encoder
