"""The architecture `spacy-distil.VectorsHead.v1`: it makes vectors of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

from spacy.pipeline.tok2vec import Tok2VecListener
from spacy.tokens import Doc
from thinc.api import Linear, Model, chain
from thinc.types import Floats2d

from spacy_distil.component.architectures import return_docs
from spacy_distil.component.listener import reads_docs
from spacy_distil.component.shim import EncoderShim
from spacy_distil.errors import ConfigError

Pooling = Literal["doc", "tokens"]
Activation = Literal["tanh", "identity"]

InT = list[Doc]
OutT = Floats2d


def VectorsHead(
    tok2vec: Model[InT, list[Floats2d]],
    pooling: Pooling = "doc",
    dense: Sequence[int] = (),
    activation: Activation = "tanh",
    normalize: bool = True,
) -> Model[InT, OutT]:
    """Make one vector of each doc, (n_docs, width).

    tok2vec: `spacy-distil.Listener.v1` with docs = true, or any other tok2vec.
    pooling: "doc": the last row of `tok2vec`, which the encoder makes of all pieces of the doc as
        its `doc_pooling` says. "tokens": the mean of the token vectors, of any tok2vec.
    dense: widths of linear layers behind it.
    activation: of these layers.
    normalize: whether vectors have the length 1. The vector of a doc without tokens stays zero.
    """
    if pooling not in get_args(Pooling):
        raise ConfigError(f"pooling = {pooling!r}: expected one of {', '.join(get_args(Pooling))}.")
    if activation not in get_args(Activation):
        expected = ", ".join(get_args(Activation))
        raise ConfigError(f"activation = {activation!r}: expected one of {expected}.")
    if pooling == "doc" and not _makes_docs(tok2vec):
        raise ConfigError(
            f'pooling = "doc", but the tok2vec {tok2vec.name!r} makes vectors of tokens alone. '
            "Take spacy-distil.Listener.v1 with docs = true, or spacy-distil.DistilTransformer.v1 "
            'with doc_pooling = "mean", or set pooling = "tokens".'
        )
    layers: list[Model[Any, Any]] = [take_last() if pooling == "doc" else mean_tokens()]
    for width in dense:
        if width < 1:
            raise ConfigError(f"dense = {[*dense]}: expected widths of at least 1.")
        layers.append(Linear(nO=width))
        if activation == "tanh":
            layers.append(tanh())
    if normalize:
        layers.append(unit_length())
    head: Model[Any, Any] = chain(*layers) if len(layers) > 1 else layers[0]
    if pooling == "doc" and not isinstance(tok2vec, Tok2VecListener):
        return_docs(tok2vec)
    model: Model[InT, OutT] = chain(tok2vec, head)
    model.set_ref("tok2vec", tok2vec)
    model.set_ref("head", head)
    return model


def _makes_docs(tok2vec: Model[Any, Any]) -> bool:
    """Whether the last row of a layer is the vector of the doc."""
    if isinstance(tok2vec, Tok2VecListener):
        return reads_docs(tok2vec)
    return any(isinstance(shim, EncoderShim) and shim.has_docs for shim in tok2vec.shims)


def take_last() -> Model[list[Floats2d], Floats2d]:
    """Take the last row of each array."""
    return Model("take_last", _take_last)


def _take_last(
    model: Model[list[Floats2d], Floats2d], rows: list[Floats2d], is_train: bool
) -> tuple[Floats2d, Callable]:
    xp = model.ops.xp
    lengths = [len(own) for own in rows]
    taken = xp.stack([own[-1] for own in rows]) if rows else model.ops.alloc2f(0, 0)

    def backprop(d_taken: Floats2d) -> list[Floats2d]:
        packed = model.ops.alloc2f(sum(lengths), d_taken.shape[1])
        packed[xp.cumsum(xp.asarray(lengths)) - 1] = d_taken
        return model.ops.unflatten(packed, model.ops.asarray1i(lengths))

    return taken, backprop


def mean_tokens() -> Model[list[Floats2d], Floats2d]:
    """Average the rows of each array; zeros if it has none."""
    return Model("mean_tokens", _mean_tokens)


def _mean_tokens(
    model: Model[list[Floats2d], Floats2d], rows: list[Floats2d], is_train: bool
) -> tuple[Floats2d, Callable]:
    ops = model.ops
    lengths = ops.asarray1i([len(own) for own in rows])
    packed = ops.flatten(rows)
    filled = ops.xp.flatnonzero(lengths)
    means = ops.alloc2f(len(rows), packed.shape[-1] if len(rows) else 0)
    if len(filled):
        means[filled] = ops.reduce_mean(packed, lengths[filled])

    def backprop(d_means: Floats2d) -> list[Floats2d]:
        d_packed = ops.alloc2f(*packed.shape)
        if len(filled):
            d_packed = ops.backprop_reduce_mean(ops.as_contig(d_means[filled]), lengths[filled])
        return ops.unflatten(d_packed, lengths)

    return means, backprop


def tanh() -> Model[Floats2d, Floats2d]:
    """The hyperbolic tangent of each number."""
    return Model("tanh", _tanh)


def _tanh(
    model: Model[Floats2d, Floats2d], X: Floats2d, is_train: bool
) -> tuple[Floats2d, Callable]:
    Y = model.ops.xp.tanh(X)
    return Y, lambda dY: dY * (1 - Y * Y)


def unit_length() -> Model[Floats2d, Floats2d]:
    """Scale each row to the length 1. A row of zeros stays as it is."""
    return Model("unit_length", _unit_length)


def _unit_length(
    model: Model[Floats2d, Floats2d], X: Floats2d, is_train: bool
) -> tuple[Floats2d, Callable]:
    xp = model.ops.xp
    lengths = xp.maximum(xp.linalg.norm(X, axis=1, keepdims=True), 1e-12)
    Y = X / lengths
    return Y, partial(_backprop_length, Y, lengths)


def _backprop_length(Y: Any, lengths: Any, dY: Any) -> Any:
    return (dY - Y * (Y * dY).sum(axis=1, keepdims=True)) / lengths
