"""The masked-LM heads of the model families, as one shape: transform, then decode.

The split is what lets an objective transform the positions that it selected once, and decode them
to the vocabulary chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class MaskedLMHead:
    """A masked-LM head.

    transform: (n, width) hidden states to (n, width) features.
    weight: (vocabulary, width), of the decoder; often tied to the piece embeddings.
    bias: (vocabulary,), of the decoder.
    """

    transform: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor

    def decode(self, features: Tensor) -> Tensor:
        """Features (n, width) to logits (n, vocabulary)."""
        return F.linear(features, self.weight, self.bias)


def masked_lm_head(model: PreTrainedModel) -> MaskedLMHead | None:
    """The head of a BERT, DistilBERT or RoBERTa model, or `None` where the model is an encoder."""
    decoder = model.get_output_embeddings()
    if decoder is None:
        return None
    if hasattr(model, "cls"):  # BERT
        transform = model.cls.predictions.transform
    elif hasattr(model, "lm_head"):  # RoBERTa
        transform = _chain(model.lm_head.dense, F.gelu, model.lm_head.layer_norm)
    else:  # DistilBERT
        transform = _chain(model.vocab_transform, model.activation, model.vocab_layer_norm)
    return MaskedLMHead(transform, decoder.weight, decoder.bias)


def _chain(*steps: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def transform(hidden: Tensor) -> Tensor:
        for step in steps:
            hidden = step(hidden)
        return hidden

    return transform
