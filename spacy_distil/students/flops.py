"""How much a model computes, from its config alone.

A multiply-add is two operations. Products of matrices are counted and nothing else: looking
embeddings up, normalisation, activations and softmax take next to no operations beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spacy_distil.errors import ConfigError
from spacy_distil.students.families import CUTTABLE
from spacy_distil.students.shapes import shape_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# A linear layer's backward pass is two products of the size of its forward pass, one for its
# inputs' gradient and one for its weights'. Those of attention have two inputs each.
_WITH_BACKWARD = 3


def encoder_flops(config: PretrainedConfig, length: int, *, backward: bool = False) -> float:
    """Floating-point operations of an encoder for one piece, without pooler and head.

    config: of a model of a family that `families` knows.
    length: pieces of the block that the piece stands in. Attention grows with it.
    backward: count the backward pass too, that of a model all of whose weights learn.
    """
    if config.model_type not in (*CUTTABLE, "albert"):
        raise ConfigError(
            f"operations of a model of type {config.model_type!r} cannot be counted; they can for: "
            f"{', '.join(CUTTABLE)}, albert"
        )
    shape = shape_of(config)
    projections = 4 * shape.width**2
    attention = 2 * length * shape.width
    feed_forward = 2 * shape.width * shape.ffn
    # ALBERT applies all layers of a group in what it counts as one.
    applied = shape.layers * getattr(config, "inner_group_num", 1)
    products = applied * (projections + attention + feed_forward)
    if _is_projected(config):
        products += config.embedding_size * shape.width
    return _operations(products, backward)


def head_flops(config: PretrainedConfig, *, backward: bool = False) -> float:
    """Floating-point operations of the masked-LM head for one position that it decodes.

    config, backward: see `encoder_flops`.
    """
    features = getattr(config, "embedding_size", config.hidden_size)
    products = config.hidden_size * features + features * config.vocab_size
    return _operations(products, backward)


def _is_projected(config: PretrainedConfig) -> bool:
    """Whether a linear layer stands between embeddings and layers: in ALBERT always, in ELECTRA
    where their widths differ."""
    embedding_size = getattr(config, "embedding_size", config.hidden_size)
    return config.model_type == "albert" or embedding_size != config.hidden_size


def _operations(products: int, backward: bool) -> float:
    """products: multiply-adds of the forward pass."""
    return 2.0 * products * (_WITH_BACKWARD if backward else 1)
