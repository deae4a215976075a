"""The architecture `spacy-distil.QAHead.v1`: it marks where answers begin and end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from thinc.api import Linear, Model
from thinc.types import Floats2d

from spacy_distil.encoding import Pooling, to_ops
from spacy_distil.pairs.layers import InT, PairRows, pair_rows
from spacy_distil.pairs.spans import IMPOSSIBLE

OutT = list[Floats2d]


def QAHead(tok2vec: Model[Any, Any]) -> Model[InT, OutT]:
    """Compute logits of the begin and the end of the answer, for pairs of a question and a doc, as
    the models for question answering of transformers do.

    For each pair: (1 + n_tokens, 2), begin and end. Row 0 stands for no answer, and comes from the
    first special piece. The begin of a token is the one of its first piece, its end the one of its
    last piece. Of several windows the largest logit of a token counts, and the smallest one of no
    answer: an answer need only be in one window.

    tok2vec: `spacy-distil.Listener.v1` with pairs = true, or a `spacy-distil.DistilTransformer.v1`.
    """
    rows = pair_rows(tok2vec)
    output: Model[Floats2d, Floats2d] = Linear(2)
    return Model(
        "qa_head",
        forward,
        init=init,
        layers=[rows, output],
        refs={"tok2vec": tok2vec, "pair_rows": rows, "output_layer": output},
    )


def forward(
    model: Model[InT, OutT], pairs: InT, is_train: bool
) -> tuple[OutT, Callable[[OutT], Any]]:
    rows, output = model.layers
    ops: Any = model.ops
    hidden, backprop_rows = rows(pairs, is_train)
    encoded = hidden.encoded
    logits, backprop_output = output(hidden.rows, is_train)
    sizes = np.array(encoded.n_tokens, dtype=np.int64)
    places = np.arange(sizes.sum()) + np.repeat(np.arange(len(sizes)), sizes) + 1
    nulls = np.cumsum(sizes + 1) - sizes - 1
    is_missing = encoded.begins.lengths == 0, encoded.ends.lengths == 0
    joined = ops.alloc2f(len(places) + len(nulls), 2)
    first = Pooling(
        encoded.first_rows,
        None,
        np.array(encoded.n_windows, dtype="i"),
        encoded.n_rows,
    )
    backprops = []
    for column, pooling in enumerate((encoded.begins, encoded.ends)):
        own = ops.as_contig(logits[:, column : column + 1])
        tokens, backprop_tokens = pooling.forward(ops, own)
        null, backprop_null = first.forward(ops, -own)
        tokens[to_ops(ops, is_missing[column])] = IMPOSSIBLE
        joined[to_ops(ops, places), column] = tokens[:, 0]
        joined[to_ops(ops, nulls), column] = -null[:, 0]
        backprops.append((backprop_tokens, backprop_null))

    def backprop(d_pairs: OutT) -> Any:
        d_joined = ops.xp.concatenate(d_pairs)
        d_logits = ops.alloc2f(*logits.shape)
        for column, (backprop_tokens, backprop_null) in enumerate(backprops):
            d_own = d_joined[:, column : column + 1]
            d_tokens = ops.as_contig(d_own[to_ops(ops, places)])
            d_tokens[to_ops(ops, is_missing[column])] = 0
            d_null = ops.as_contig(-d_own[to_ops(ops, nulls)])
            d_column = backprop_tokens(d_tokens) - backprop_null(d_null)
            d_logits[:, column] = d_column[:, 0]
        return backprop_rows(PairRows(backprop_output(d_logits), encoded))

    ends = np.cumsum(sizes + 1)
    return [joined[end - n - 1 : end] for n, end in zip(sizes, ends, strict=True)], backprop


def init(model: Model[InT, OutT], X: Any = None, Y: Any = None) -> None:
    rows, output = model.layers
    rows.initialize()
    sample: Any = model.ops.alloc2f(1, rows.get_dim("nO"))
    output.initialize(X=sample)
