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
    """Sum a loss on vocabulary logits over rows, with memory for the logits of `chunk_rows` rows.

    loss: called with the logits of a chunk, (chunk, vocabulary), and the same rows of each of
        `rows`; returns the sum of the rows' losses as a scalar.
    features: (n, width), see `Encoded.vocabulary_features`. Gradients flow into them.
    head: its decoder computes the logits. Gradients flow into it.
    rows: further tensors of n rows that `loss` needs. No gradients flow into them.
    """

    def decode(features: Tensor, weight: Tensor, bias: Tensor, *rows: Tensor) -> Tensor:
        return loss(F.linear(features, weight, bias), *rows)

    total = chunked_sum(
        decode, [features], whole=[head.weight, head.bias], constant=rows, size=chunk_rows
    )
    return Loss(total, len(features))
