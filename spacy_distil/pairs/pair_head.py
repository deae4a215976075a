"""The architecture `spacy-distil.PairHead.v1`: it classifies pairs of texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from thinc.api import Linear, Model, chain
from thinc.types import Floats2d

from spacy_distil.component.textcat import ACTIVATIONS, ActivationName, activation, square
from spacy_distil.encoding import to_ops
from spacy_distil.errors import ConfigError
from spacy_distil.pairs.layers import InT, PairRows, pair_rows

Join = Literal["mean", "max"]

OutT = Floats2d


def PairHead(
    tok2vec: Model[Any, Any],
    hidden: ActivationName | None = "tanh",
    join: Join = "mean",
    nO: int | None = None,
) -> Model[InT, OutT]:
    """Compute logits of pairs of texts, (n_pairs, nO), from the first special piece of their
    window, as the text classifiers of transformers do.

    tok2vec: `spacy-distil.Listener.v1` with pairs = true, or a `spacy-distil.DistilTransformer.v1`.
    hidden: activation of a hidden layer, which is as wide as the encoder; null for no such layer.
    join: how the logits of a pair become one if its texts do not fit into one window: their "mean",
        or the "max" of each, which suits relevance: one part of a long text may be relevant.
    nO: number of outputs; null for the number of labels.
    """
    if hidden is not None and hidden not in ACTIVATIONS:
        raise ConfigError(f"hidden = {hidden!r}: expected null or one of {', '.join(ACTIVATIONS)}.")
    if join not in get_args(Join):
        raise ConfigError(f"join = {join!r}: expected one of {', '.join(get_args(Join))}.")
    rows = pair_rows(tok2vec)
    output: Model[Floats2d, Floats2d] = Linear(nO)
    layers = [square(), activation(hidden), output] if hidden is not None else [output]
    head: Model[Any, Any] = chain(*layers) if len(layers) > 1 else output
    return Model(
        "pair_head",
        forward,
        init=init,
        layers=[rows, head],
        dims={"nO": nO},
        attrs={"join": join},
        refs={
            "tok2vec": tok2vec,
            "pair_rows": rows,
            "hidden": layers[0] if hidden is not None else None,
            "output_layer": output,
        },
    )


def forward(
    model: Model[InT, OutT], pairs: InT, is_train: bool
) -> tuple[OutT, Callable[[OutT], Any]]:
    rows, head = model.layers
    ops = model.ops
    encoded, backprop_rows = rows(pairs, is_train)
    index = to_ops(ops, encoded.encoded.first_rows)
    lengths = ops.asarray1i(encoded.encoded.n_windows)
    logits, backprop_head = head(encoded.rows[index], is_train)
    which: Any = None
    if model.attrs["join"] == "max":
        joined, which = ops.reduce_max(logits, lengths)
    else:
        joined = ops.reduce_mean(logits, lengths)

    def backprop(d_joined: OutT) -> Any:
        if which is None:
            d_logits = ops.backprop_reduce_mean(ops.as_contig(d_joined), lengths)
        else:
            d_logits = ops.backprop_reduce_max(ops.as_contig(d_joined), which, lengths)
        d_rows = ops.alloc2f(*encoded.rows.shape)
        d_rows[index] = backprop_head(d_logits)
        return backprop_rows(PairRows(d_rows, encoded.encoded))

    return joined, backprop


def init(model: Model[InT, OutT], X: Any = None, Y: Any = None) -> None:
    rows, head = model.layers
    rows.initialize()
    sample: Any = model.ops.alloc2f(1, rows.get_dim("nO"))
    n_outputs = model.maybe_get_dim("nO")
    if n_outputs is not None:
        model.get_ref("output_layer").set_dim("nO", n_outputs)
    head.initialize(X=sample)
