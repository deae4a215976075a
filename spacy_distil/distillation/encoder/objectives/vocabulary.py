"""Losses on distributions over the vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from spacy_distil.distillation.encoder.objectives.base import Loss
from spacy_distil.distillation.encoder.objectives.chunked import chunked_sum
from spacy_distil.students.masked_lm_heads import MaskedLMHead


def vocabulary_loss(
    loss: Callable[..., Tensor],
    features: Tensor,
    head: MaskedLMHead,
    *rows: Tensor,
    chunk_rows: int,
) -> Loss:
    """Sum over rows of a loss on vocabulary logits, in memory for `chunk_rows` rows of them.

    loss: called with the logits of a chunk, (chunk, vocabulary), and the same rows of each of
        `rows`; returns the sum of the rows' losses as a scalar.
    features: (n, width), see `Encoded.vocabulary_features`; gradients flow into them.
    head: whose decoder makes the logits; gradients flow into it.
    rows: tensors of n rows that `loss` needs beside the logits; no gradients flow into them.
    """

    def decode(features: Tensor, weight: Tensor, bias: Tensor, *rows: Tensor) -> Tensor:
        return loss(F.linear(features, weight, bias), *rows)

    total = chunked_sum(
        decode, [features], whole=[head.weight, head.bias], constant=rows, size=chunk_rows
    )
    return Loss(total, len(features))
