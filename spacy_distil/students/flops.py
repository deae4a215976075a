"""Count the floating-point operations of a model from its config.

A multiply-add is two operations. Only matrix products are counted: embedding look-ups,
normalization, activations and softmax add next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spacy_distil.errors import ConfigError
from spacy_distil.students.families import FAMILIES
from spacy_distil.students.shapes import shape_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# The backward pass of a product is two products of the same size, one for the gradient of each
# factor.
_WITH_BACKWARD = 3


def encoder_flops(config: PretrainedConfig, length: int, *, backward: bool = False) -> float:
    """Count the operations of an encoder for one piece, without pooler and masked-LM head.

    config: of a model of one of the `FAMILIES`.
    length: pieces in the block. The cost of attention grows with it.
    backward: also count the backward pass, with all weights trained.
    Raises ConfigError for another family.
    """
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"the operations of a model of type {config.model_type!r} cannot be counted; expected "
            f"one of: {', '.join(FAMILIES)}"
        )
    shape = shape_of(config)
    projections = 4 * shape.width**2
    attention = 2 * length * shape.width
    feed_forward = 2 * shape.width * shape.ffn
    # ALBERT counts the application of a whole group as one layer.
    n_applied = shape.layers * getattr(config, "inner_group_num", 1)
    products = n_applied * (projections + attention + feed_forward)
    if _has_projection(config):
        products += config.embedding_size * shape.width
    return _operations(products, backward)


def mlm_head_flops(config: PretrainedConfig, *, backward: bool = False) -> float:
    """Count the operations of the masked-LM head for one position.

    config, backward: see `encoder_flops`.
    """
    n_features = getattr(config, "embedding_size", config.hidden_size)
    products = config.hidden_size * n_features + n_features * config.vocab_size
    return _operations(products, backward)


def _has_projection(config: PretrainedConfig) -> bool:
    """Whether a linear layer stands between embeddings and layers.

    ALBERT always has one, ELECTRA if the widths differ.
    """
    embedding_size = getattr(config, "embedding_size", config.hidden_size)
    return config.model_type == "albert" or embedding_size != config.hidden_size


def _operations(products: int, backward: bool) -> float:
    """Convert the multiply-adds of a forward pass to operations."""
    return 2.0 * products * (_WITH_BACKWARD if backward else 1)
