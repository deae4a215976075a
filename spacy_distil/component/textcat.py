"""The architecture `spacy-distil.TextCatHead.v1`: the heads of Hugging Face's text classifiers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

from spacy.tokens import Doc
from thinc.api import (
    Linear,
    Logistic,
    Model,
    Softmax,
    chain,
    list2ragged,
    reduce_mean,
    resizable,
)
from thinc.layers.resizable import resize_linear_weighted, resize_model
from thinc.types import Floats2d
from thinc.util import get_width

from spacy_distil.errors import ConfigError

ActivationName = Literal["tanh", "gelu", "relu"]
ACTIVATIONS: tuple[str, ...] = get_args(ActivationName)
# First bias of a label that is added to a trained softmax: it does not change the other labels.
_NEW_LABEL_BIAS = -5000.0


def TextCatHead(
    tok2vec: Model[list[Doc], list[Floats2d]],
    exclusive_classes: bool,
    hidden: ActivationName | None = None,
    nO: int | None = None,
) -> Model[list[Doc], Floats2d]:
    """Classify documents as the text classifiers of transformers do: the mean of the token vectors,
    a hidden layer or none, and a linear layer.

    With pooling = "cls", all tokens of a window have the vector of its first special piece, and
    their mean is that vector. In a document of several windows it is the mean of several, and a
    window counts with its number of tokens.

    tok2vec: the token vectors.
    exclusive_classes: probabilities of classes that exclude each other (softmax), for `textcat`; or
        one probability for each class (logistic function), for `textcat_multilabel`.
    hidden: activation of a hidden layer, which is as wide as the token vectors; null for no such
        layer. "tanh" in BERT, ALBERT, RoBERTa, XLM-R, CamemBERT and MPNet, "gelu" in ELECTRA and
        DeBERTa, "relu" in DistilBERT.
    nO: number of classes; null for the number of labels.
    """
    if hidden is not None and hidden not in ACTIVATIONS:
        raise ConfigError(f"hidden = {hidden!r}: expected null or one of {', '.join(ACTIVATIONS)}.")
    width = tok2vec.maybe_get_dim("nO")
    with Model.define_operators({">>": chain}):
        pooled = tok2vec >> list2ragged() >> reduce_mean()
        if hidden is not None:
            pooled = pooled >> square() >> activation(hidden)
        bias = _NEW_LABEL_BIAS if exclusive_classes else 0.0
        output: Model = resizable(
            (Softmax if exclusive_classes else Linear)(nO, width),
            partial(resize_linear_weighted, fill_defaults={"W": 0, "b": bias}),
        )
        model: Model = pooled >> output if exclusive_classes else pooled >> output >> Logistic()
    model.set_ref("tok2vec", tok2vec)
    model.set_ref("pooled", pooled)
    model.set_ref("output_layer", output.layers[0])
    model.attrs["resize_output"] = _resize
    model.attrs["multi_label"] = not exclusive_classes
    if nO is not None:
        model.set_dim("nO", nO)
    return model


def _resize(model: Model, n_classes: int) -> Model:
    """Add outputs for new labels. RETURNS: the same model."""
    resizing = next(node for node in model.walk() if "resize_layer" in node.attrs)
    model.set_ref("output_layer", resize_model(resizing, n_classes).layers[0])
    model.set_dim("nO", n_classes, force=True)
    return model


def square() -> Model[Floats2d, Floats2d]:
    """Return a linear layer whose output is as wide as its input."""
    layer: Any = Linear()
    layer.init = partial(_init_square, layer.init)
    return layer


def _init_square(
    init: Callable, model: Model, X: Floats2d | None = None, Y: Floats2d | None = None
) -> None:
    if X is not None:
        model.set_dim("nI", get_width(X))
    model.set_dim("nO", model.get_dim("nI"))
    init(model)


def activation(name: ActivationName) -> Model[Floats2d, Floats2d]:
    return Model(name, _activate, attrs={"function": name})


def _activate(
    model: Model[Floats2d, Floats2d], X: Floats2d, is_train: bool
) -> tuple[Floats2d, Callable[[Floats2d], Floats2d]]:
    ops: Any = model.ops
    name = model.attrs["function"]
    if name == "gelu":
        return ops.gelu(X), lambda dY: ops.backprop_gelu(dY, X)
    if name == "relu":
        Y = ops.relu(X)
        return Y, lambda dY: ops.backprop_relu(dY, Y)
    Y = ops.xp.tanh(X)
    return Y, lambda dY: dY * (1 - Y**2)
